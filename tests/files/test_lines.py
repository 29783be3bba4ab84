"""Lines that are added one by one: whole, in order, from any number of writers."""

import json
import multiprocessing
import os

import pytest

from prunus.files import LineFile, whole_lines


def rows(path):
    lines, torn = whole_lines(path)
    assert not torn
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("begun", ["", '{"a": 0}\n'])
@pytest.mark.parametrize("torn", ['{"a": 1, "b": "to', "{", "3", "x" * 200_000])
def test_a_torn_line_is_cut_off(tmp_path, begun, torn):
    path = tmp_path / "a.jsonl"
    path.write_text(begun + torn)
    assert whole_lines(path) == (begun.encode().splitlines(), True)
    with LineFile(path) as file:
        file.append('{"a": 2}')
    assert path.read_text() == begun + '{"a": 2}\n'


def test_a_line_that_nobody_ended_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 0}\n{"a": 1}')
    assert [row["a"] for row in rows(path)] == [0, 1]
    with LineFile(path) as file:
        file.append('{"a": 2}')
    assert [row["a"] for row in rows(path)] == [0, 1, 2]


def add(path, writer):
    with LineFile(path) as file:
        for i in range(30):
            file.append(json.dumps([writer, i, "x" * 3000]))


def test_writers_of_one_file_take_turns(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add, args=(tmp_path / "a", n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = rows(tmp_path / "a")
    for writer in range(3):
        assert [i for name, i, _ in found if name == writer] == list(range(30))


def test_links_devices_and_folders(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "a")
    with LineFile(tmp_path / "link") as file:
        file.append("{}")
    assert (tmp_path / "new" / "a").read_text() == "{}\n"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=f"no file that lines can be added to: '{path}'"):
            LineFile(path)
    with pytest.raises(FileExistsError):
        LineFile(tmp_path / "link", new=True)


def test_a_file_that_is_taken_away_is_said(tmp_path):
    """Or hours of work would go where nobody finds them."""
    with LineFile(tmp_path / "a") as file:
        file.append("{}")
        os.unlink(tmp_path / "a")
        with pytest.raises(FileNotFoundError, match="taken away while lines were added"):
            file.append("{}")
    with LineFile(tmp_path / "a") as file:
        os.replace(tmp_path / "a", tmp_path / "b")
        (tmp_path / "a").touch()  # another one in its place
        with pytest.raises(FileNotFoundError, match="taken away"):
            file.append("{}")
