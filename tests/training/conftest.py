import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Folder, model and summary of a run that nothing ended; the folder is to be read, or copied."""
    from small_run import run

    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, *run(folder)
