"""Files of other programs: what they are, by their endings or first bytes, and how their rows become a file that is read."""

from __future__ import annotations

import shlex
from pathlib import Path

_TABLE = "Save the table as .csv, .parquet or .xlsx"
_PANDAS = "Write a table that is read: pandas.{reader}({name!r}{more}).to_csv('rows.csv', index=False)."
_PICKLE = (
    "{name} is a pickle, which runs code when it is opened, so that it is not read. Write the numbers by "
    "numpy.save('rows.npy', rows), or a table by frame.to_parquet('rows.parquet'), in the program that made it."
)
_HDF = "{name} is an HDF5 file. Write its rows by numpy.save('rows.npy', h5py.File({name!r})['...'][:])."
_PACKED = "{name} is compressed. Unpack it first: {command} {quoted}."
_IMAGE = (
    "{name} is an image, and a row is one of many: give the folder of images, or an array (N, H, W) in a .npy file."
)
_TOLD = {
    **dict.fromkeys((".ods", ".numbers"), f"{{name}} is a spreadsheet of another program. {_TABLE} there."),
    **dict.fromkeys((".xlsm", ".xlsb"), f"{{name}} is a workbook with macros or in binary form. {_TABLE} in Excel."),
    ".sav": "{name} is a file of SPSS. " + _PANDAS.replace("{reader}", "read_spss").replace("{more}", ""),
    ".dta": "{name} is a file of Stata. " + _PANDAS.replace("{reader}", "read_stata").replace("{more}", ""),
    ".sas7bdat": "{name} is a file of SAS. " + _PANDAS.replace("{reader}", "read_sas").replace("{more}", ""),
    ".json": "{name} is JSON. " + _PANDAS.replace("{reader}", "read_json").replace("{more}", ""),
    **dict.fromkeys(
        (".jsonl", ".ndjson"),
        "{name} has a line of JSON for each row. "
        + _PANDAS.replace("{reader}", "read_json").replace("{more}", ", lines=True"),
    ),
    **dict.fromkeys(
        (".arrow", ".feather"),
        "{name} is a file of Arrow, which pv.data.open(...) gives to pv.fit. Here, write a table that is read: "
        "pandas.read_feather({name!r}).to_parquet('rows.parquet').",
    ),
    ".gz": _PACKED.replace("{command}", "gunzip"),
    ".bz2": _PACKED.replace("{command}", "bunzip2"),
    ".xz": _PACKED.replace("{command}", "unxz"),
    ".zst": _PACKED.replace("{command}", "unzstd"),
    ".zip": _PACKED.replace("{command}", "unzip"),
    ".tar": "{name} is an archive. Unpack it first: tar -xf {quoted}.",
    ".tgz": "{name} is an archive. Unpack it first: tar -xf {quoted}.",
    ".h5ad": "{name} is a file of AnnData. Write its counts, for example: rows = anndata.read_h5ad({name!r}).to_df(), then "
    "rows.to_parquet('rows.parquet').",
    **dict.fromkeys((".h5", ".hdf5", ".loom"), _HDF),
    ".mat": "{name} is a file of MATLAB. Write an array of it: numpy.save('rows.npy', scipy.io.loadmat({name!r})['...']).",
    **dict.fromkeys((".rds", ".rdata", ".rda"), "{name} is a file of R. Write the table there: write.csv(table, 'rows.csv')."),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".pt", ".pth"), _PICKLE),
    ".safetensors": "{name} holds tensors by name. Write that of the rows: "
    "numpy.save('rows.npy', safetensors.numpy.load_file({name!r})['...']).",
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), "{name} is a database. Write the table of a query as .csv."),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp"), _IMAGE),
}  # fmt: skip
_FIRST = {
    b"\x1f\x8b": "It is compressed by gzip: name it .gz, and unpack it by gunzip.",
    b"BZh": "It is compressed by bzip2: name it .bz2, and unpack it by bunzip2.",
    b"\xfd7zXZ": "It is compressed by xz: name it .xz, and unpack it by unxz.",
    b"PK\x03\x04": "It is a ZIP archive, as Excel's workbooks and NumPy's .npz are: name it so, or unpack it by unzip.",
    b"\xd0\xcf\x11\xe0": "It is a workbook of an older Excel: name it .xls, or save it as .csv.",
    b"PAR1": "It is a Parquet file: name it .parquet.",
    b"ARROW1": "It is a file of Arrow: name it .arrow, or write it as .parquet.",
    b"\x93NUMPY": "It is an array of NumPy: name it .npy.",
    b"\x89HDF": "It is an HDF5 file: write its rows by numpy.save.",
    b"\x89PNG": "It is an image.",
    b"\xff\xfe": "It is text in UTF-16: save it in UTF-8.",
    b"\xfe\xff": "It is text in UTF-16: save it in UTF-8.",
    b"SQLite format 3": "It is a database: write the table of a query as .csv.",
}


def cure_of(path: Path) -> str:
    """What a file of another program is, and how its rows are written as a file that is read; "" for other endings."""
    return _TOLD.get(path.suffix.lower(), "").format(name=path.name, quoted=shlex.quote(path.name))


def cure_of_another(path: Path) -> str:
    """The same for a workbook or a Parquet file, which begin so; "" where it is what its ending says."""
    usual = {".parquet": b"PAR1", ".xlsx": b"PK\x03\x04", ".xls": b"\xd0\xcf\x11\xe0"}.get(path.suffix.lower())
    cure = cure_of_content(path)
    return "" if usual is not None and cure == _FIRST[usual] else cure


def cure_of_letters(path: Path, error: Exception) -> str:
    """How a text is converted whose letters are in another encoding; "" for other errors, and for bytes that are no text."""
    if not isinstance(error, UnicodeDecodeError) or min(error.object) < ord("\t"):
        return ""
    return (
        "Its letters are in another encoding, or it is damaged. Save it in UTF-8 (Excel: CSV UTF-8), or convert it: iconv -f "
        f"WINDOWS-1252 -t UTF-8 {shlex.quote(path.name)} > rows.csv, with WINDOWS-1251 for Cyrillic letters, GB18030 for "
        "Chinese and SHIFT-JIS for Japanese."
    )


def cure_of_content(path: Path) -> str:
    """What a file is by its first bytes, where its ending says something else; "" where they say nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return ""
    return next((told for first, told in _FIRST.items() if start.startswith(first)), "")
