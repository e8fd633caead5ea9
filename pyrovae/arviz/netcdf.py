"""ArviZ's data as the bytes of a netCDF file, made in memory, because HDF5 itself crashes on a full disk."""

from io import BytesIO
from typing import Any

from pyrovae.programs.isolation import importing


@importing()  # xarray imports the library that writes the file
def netcdf(inference: Any) -> bytes:
    """Return the content of a netCDF file that ``arviz.from_netcdf`` reads.

    Args:
        inference: an ``InferenceData`` of ArviZ 0.x, or the ``DataTree`` of 1.x.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    names = inference.groups() if callable(inference.groups) else list(inference.children)
    content = BytesIO()
    with h5netcdf.File(content, "w") as file:
        file.attrs.update(inference.attrs)
        for name in names:
            group = inference[name]
            dataset = group.to_dataset() if hasattr(group, "to_dataset") else group.copy()
            for variable in dataset.variables.values():
                variable.encoding = {"zlib": True} if variable.dtype.kind in "biufc" else {}
            dataset.dump_to_store(H5NetCDFStore(file.create_group(name)))
    return content.getvalue()
