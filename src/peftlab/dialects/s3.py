"""Results of the HiRA baselines: evaluation files with every answer, read in as runs and written out of them.

Results only. An experiment of theirs is a command line: what each of its flags is here stands in the docs.
"""

from __future__ import annotations

from peftlab.dialects import _s3_export, _s3_import
from peftlab.dialects._s3_names import NAME
from peftlab.errors import UserError
from peftlab.foreign import Dialect, Foreign, Native


def to_native(foreign: Foreign) -> Native:
    """Refuse: there is no file that an experiment of theirs is written in."""
    raise UserError(
        f"{foreign.where}: dialect {NAME} is one of results; its experiments are command lines",
        fix="write the flags as a folder: docs/moving.md has each of them",
    )


PLUGIN = Dialect(
    recognises=lambda foreign: False,
    to_native=to_native,
    export_files=_s3_export.export_files,
    parse=_s3_import.parse,
    import_result=_s3_import.import_result,
    import_items=_s3_import.import_items,
)
