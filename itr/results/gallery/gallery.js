"use strict";
// A filter of the cards by their texts, and a larger view of a picture. Text is set by textContent.
const cards = [...document.querySelectorAll("article.case")];
const words = new Map(cards.map(card => [card, (card.textContent + " " + [...card.querySelectorAll("img")].map(img => img.alt).join(" ")).toLowerCase()]));
const box = document.getElementById("filter");
box.parentElement.hidden = false; // without scripts there is none
box.addEventListener("input", () => {
  const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const card of cards) {
    card.hidden = !wanted.every(word => words.get(card).includes(word));
    if (!card.hidden) count++;
  }
  document.getElementById("shown").textContent = wanted.length ? `${count} of ${cards.length} queries` : "";
});
const view = document.createElement("dialog");
document.body.append(view);
view.addEventListener("click", () => view.close());
document.addEventListener("click", event => {
  const image = event.target;
  if (image.tagName !== "IMG" || view.contains(image)) return;
  const larger = document.createElement("img"), name = document.createElement("p");
  larger.src = image.src;
  larger.alt = image.alt;
  name.textContent = image.alt;
  view.replaceChildren(larger, name);
  view.showModal();
});
