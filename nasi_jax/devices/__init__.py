"""Devices: versions, compiled programs kept on disk, compiling without the device."""
