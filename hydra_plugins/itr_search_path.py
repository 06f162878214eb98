"""Adds the ``conf`` folders of registered packages (`itr.plugins`) to Hydra's search path."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from itr.plugins import conf_folders


class PluginSearchPath(SearchPathPlugin):
    """Hydra calls it whenever it composes a configuration."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders, behind the suite's own."""
        for package, folder in conf_folders().items():
            search_path.append(provider=package, path=f"file://{folder}")
