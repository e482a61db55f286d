"""Packaging: a wheel holds kernels/ as cram/_kernels and configs/ as cram/_configs.

Only a real wheel: an editable installation reads both folders where they are (cram/__init__.py, cram/config.py),
and copies would go stale.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "standard":
            build_data["force_include"].update({"kernels": "cram/_kernels", "configs": "cram/_configs"})
