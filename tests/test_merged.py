"""results.h5: all of a sweep in one file, the same to the byte, readable by anyone, and enough to
make the report from; a file of others is not trusted."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import zlib

import h5py
import numpy
import pytest

from pipeline import __version__, cli, hardware, report, store
from pipeline.errors import Corrupt, UserError
from pipeline.measure.series import Series
from pipeline.orchestrate import local, plan
from pipeline.paths import Work
from pipeline.report import chunks, evidence, frames, merged, reading, row
from pipeline.store import hdf5
from tests import cells, many, results

BATCH1 = Series("onnxruntime", "artifact", "all", 1)
SWEEP = """\
name: shared
models: [{name: vgg11_bn, width: 0.125}]
datasets: [digits]
techniques: [base, ptq-int8, kd]
seeds: [0, 1]
training: {epochs: 2, batch_size: 64}
"""
LABELS = numpy.random.default_rng(0).integers(0, 10, 10_000).astype(numpy.uint16)


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "shared-sweep.yaml"
    path.write_text(SWEEP)
    return plan.load_sweep(path)


def values(cell):
    """With predictions that a base's other techniques repeat, as in real results."""
    base = LABELS.copy()
    base[cell.seed :: 400] = 0
    own = base if cell.is_base else numpy.where(base == len(cell.technique) % 10, 1, base)
    return results.measured(
        cell, labels=LABELS, base_predictions=base, predictions=own.astype(numpy.uint16)
    )


def publish_all(sweep, work):
    """All but the last cell, which fails; one says what its job used."""
    *done, last = frames.in_order(sweep)
    for cell in done:
        results.publish(cell, work, values(cell))
    results.fail(last, work, "exception", "a\x1b[31m <b>reason</b>")
    attempt = store.new_attempt(work.cell(done[0].id))
    store.publish_json(attempt.usage, USED)
    return work


USED = {
    "job": "12",
    "asked": {"memory_bytes": 4 << 30, "cores": 4},
    "used": {"memory_bytes": 1 << 30, "cores": 1.5, "gpu_memory_bytes": 0, "gpu_busy": None},
}


@pytest.fixture
def work(sweep, tmp_path):
    return publish_all(sweep, Work(tmp_path / "work"))


@pytest.fixture
def published(sweep, work, tmp_path):
    return merged.write(sweep, work, tmp_path / "results.h5")


def content(group) -> dict[str, object]:
    """Every attribute and dataset below an h5py group, as plain bytes."""
    entries = {f"@{k}": v for k, v in group.attrs.items()}

    def visit(prefix, members):
        for name, member in members.items():
            if isinstance(member, h5py.Group):
                visit(f"{prefix}{name}/", member)
            else:
                entries[prefix + name] = (member.dtype, member.shape, member[()].tobytes())

    visit("", group)
    return entries


# --- what is in it ---------------------------------------------------------------------------


def test_a_cell_has_exactly_what_its_result_has(sweep, work, published):
    with h5py.File(published.path) as file:
        for cell in frames.in_order(sweep)[:-1]:
            with h5py.File(work.cell(cell.id).result) as own:
                expected = content(own)
            cell_content = content(file["cells"][cell.id])
            artifact = json.loads(cell_content.pop("@artifact"))
            assert cell_content == expected
            manifest = store.read_manifest(work.cell(cell.id))["files"]
            assert {
                f"artifact/{n}": entry for n, entry in artifact.items()
            }.items() <= manifest.items()


def test_it_is_plain_hdf5_in_the_reports_order(sweep, published):
    import pandas

    with h5py.File(published.path) as file:
        assert list(file["cells"]) == [cell.id for cell in frames.in_order(sweep)[:-1]]
        assert file["text"][()].decode() == SWEEP and file.attrs["name"] == "shared"
        history = file["cells"][sweep.cells[0].id]["history/1-finetune"]
        frame = pandas.DataFrame({name: column[()] for name, column in history.items()})
    assert frame.loss.tolist() == [1.5, 0.25]


def test_long_arrays_are_compressed_and_the_same_ones_are_there_once(sweep, published):
    base, other = sweep.cells[0].id, sweep.cells[2].id
    with h5py.File(published.path) as file:
        one, two = (file[f"cells/{i}/measure"] for i in (base, other))
        assert one["labels"] == two["labels"] and one["predictions"] == two["base_predictions"]
        assert one["predictions"] != two["predictions"]
        assert two["predictions"].id.get_storage_size() < LABELS.nbytes / 3
    assert published.path.stat().st_size < 5 * 60_000


def test_what_is_damaged_is_a_gap_there_too(sweep, work, tmp_path):
    result = work.cell(sweep.cells[0].id).result
    result.write_bytes(result.read_bytes()[:-1] + b"x")
    published = merged.write(sweep, work, tmp_path / "results.h5")
    with h5py.File(published.path) as file:
        assert sweep.cells[0].id not in file["cells"] and len(file["cells"]) == 4
        reasons = {gap["cell"]["id"]: gap["reason"] for gap in json.loads(file["gaps"][()])}
    assert reasons[sweep.cells[0].id].startswith("damaged: result.h5")


def test_without_any_result_it_is_there_and_changes_nothing_else(sweep, tmp_path):
    published = merged.write(sweep, Work(tmp_path / "none"), tmp_path / "results.h5")
    assert len(merged.read(published.path).frames.gaps) == 6
    assert sorted(os.listdir(tmp_path)) == ["results.h5", "shared-sweep.yaml"]


# --- the same to the byte --------------------------------------------------------------------


def test_the_same_results_give_the_same_bytes_in_any_order(sweep, published, tmp_path):
    other = Work(tmp_path / "other")
    for cell in sweep.cells[::-1]:
        if cell.id != frames.in_order(sweep)[-1].id:
            results.publish(cell, other, values(cell))
    results.fail(frames.in_order(sweep)[-1], other, "exception", "a\x1b[31m <b>reason</b>")
    store.publish_json(store.new_attempt(other.cell(frames.in_order(sweep)[0].id)).usage, USED)
    again = merged.write(sweep, other, tmp_path / "again" / "results.h5")
    assert again.path.read_bytes() == published.path.read_bytes()


def test_processes_change_nothing(tmp_path, monkeypatch):
    sweep, work = many.sweep(200), Work(tmp_path / "work")
    many.publish(sweep, work)
    shutil.rmtree(work.cell(sweep.cells[70].id).folder)
    one = merged.write(sweep, work, tmp_path / "one.h5")
    rows = frames.read(sweep, work)
    monkeypatch.setattr(chunks, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    two = merged.write(sweep, work, tmp_path / "two.h5")
    assert one.path.read_bytes() == two.path.read_bytes()
    for other in (two.frames, rows):
        assert other.cells.equals(one.frames.cells) and other.gaps == one.frames.gaps
    assert len(one.frames.cells) == 199 and len(one.frames.gaps) == 1
    named = [row.identity(sweep.by_id[cell_id]) for cell_id in one.frames.ids]
    assert tuple(reading.from_results(two.path, named)) == one.frames.rows


# --- read back -------------------------------------------------------------------------------


def test_what_is_read_back_is_what_was_written(sweep, work, published):
    read_back = merged.read(published.path)
    assert read_back.sweep.cells == sweep.cells and read_back.sweep.text == sweep.text
    assert read_back.frames.cells.equals(published.frames.cells)
    assert read_back.frames.gaps == published.frames.gaps and read_back.usages == published.usages
    assert read_back.used == published.used and read_back.used.cells == 1
    for cell in frames.in_order(sweep)[:-1]:
        result = store.read_result(work.cell(cell.id).result)
        assert str(read_back.evidence(cell.id)) == str(evidence.of(result))
    assert read_back.evidence(frames.in_order(sweep)[-1].id) is None


def test_the_report_is_made_from_it_alone_to_the_same_bytes(sweep, work, tmp_path, monkeypatch):
    paths = report.build(sweep, work, tmp_path / "reports")[0]
    before = {p: p.read_bytes() for p in paths.folder.rglob("*") if p.is_file()}
    assert len(before) > 5
    shutil.rmtree(work.root)
    for path in before:
        if path != paths.merged:
            path.unlink()
    monkeypatch.chdir(tmp_path / "reports")  # where the sweep's file is not
    again, listed = report.rebuild(paths.folder)
    assert {p: p.read_bytes() for p in again.folder.rglob("*") if p.is_file()} == before
    assert listed == report.read_folder(paths.folder) and len(listed.rows) == 5


# --- with what an earlier report has ---------------------------------------------------------


def test_an_earlier_report_stands_in_for_a_work_root_that_was_purged(sweep, work, tmp_path):
    paths = report.build(sweep, work, tmp_path / "reports")[0]
    before = h5py_content(paths.merged)
    shutil.rmtree(work.root)
    again, listed = report.build(sweep, work, tmp_path / "again", earlier=paths.folder)
    after = h5py_content(again.merged)
    gone = {name for name in before if before[name] != after.get(name)}
    assert gone == {"gaps"} and set(after) == set(before)  # why one failed is not known any more
    assert (
        listed.rows
        == report.read_folder(paths.folder).rows
        == report.read(sweep, work, paths.folder).rows
    )
    assert [gap.reason for gap in listed.gaps] == ["not run yet"]
    over = report.build(sweep, work, tmp_path / "again", earlier=again.folder)[0]  # itself
    assert h5py_content(over.merged) == after


def test_what_the_work_root_has_goes_before_what_an_earlier_report_has(sweep, work, tmp_path):
    paths = report.build(sweep, work, tmp_path / "reports")[0]
    newer, damaged, *_ = ids = [cell.id for cell in frames.in_order(sweep)]
    results.publish(sweep.by_id[newer], work, values(sweep.by_id[newer]) | {"accuracy": 0.125})
    result = work.cell(damaged).result
    result.write_bytes(result.read_bytes()[:-1] + b"x")
    shutil.rmtree(work.cell(ids[2]).folder)
    shutil.rmtree(work.cell(ids[-1]).folder)
    results.publish(sweep.by_id[ids[-1]], work, values(sweep.by_id[ids[-1]]))
    merged_frames = merged.write(sweep, work, tmp_path / "results.h5", [paths.merged]).frames
    assert merged_frames.cells["id"].tolist() == [i for i in ids if i != damaged]
    assert merged_frames.cells.set_index("id").accuracy[newer] == 0.125
    assert [gap.reason.partition(":")[0] for gap in merged_frames.gaps] == ["damaged"]


def test_of_an_earlier_report_only_cells_of_the_sweep_are_taken(sweep, work, tmp_path):
    paths = report.build(sweep, work, tmp_path / "reports")[0]
    path = tmp_path / "fewer.yaml"
    path.write_text(SWEEP.replace("[0, 1]", "[1, 2]").replace("shared", "fewer"))
    fewer, none = plan.load_sweep(path), Work(tmp_path / "none")
    listed = report.build(fewer, none, tmp_path / "reports", earlier=paths.folder)[1]
    assert [row.seed for row in listed.rows] == [1, 1]
    assert len(listed.gaps) == 4


def test_without_its_work_root_a_report_keeps_its_results_and_models_and_that_is_said(
    sweep, work, tmp_path, capsys, monkeypatch
):
    """As with a mistyped work root, or a new one."""
    paths = report.build(sweep, work, tmp_path / "reports", artifact_bytes=10**9)[0]
    before = h5py_content(paths.merged)
    models = {p: p.read_bytes() for p in paths.artifacts.rglob("*") if p.is_file()}
    assert not capsys.readouterr().err
    none = Work(tmp_path / "none")
    listed = report.build(sweep, none, tmp_path / "reports")[1]
    told = capsys.readouterr().err
    assert f"5 of 5 results are not in {none.root} and are kept as {paths.folder} had" in told
    after = h5py_content(paths.merged)
    assert {name for name in before if before[name] != after.get(name)} == {"gaps"}
    assert models and all(p.read_bytes() == data for p, data in models.items())
    assert report.read(sweep, none, out=tmp_path / "reports").rows == listed.rows
    monkeypatch.chdir(tmp_path)
    assert local._report(sweep, none) == 1  # what `run` did not make is not done
    with pytest.raises(UserError, match="--machine 'no-such'"):
        report.build(sweep, none, tmp_path / "new", machine="no-such")
    assert not (tmp_path / "new" / "shared").exists()


def test_a_report_keeps_no_result_of_a_cell_that_left_the_sweep(sweep, work, tmp_path, capsys):
    report.build(sweep, work, tmp_path / "reports", artifact_bytes=10**9)
    path = tmp_path / "shared-sweep.yaml"
    path.write_text(SWEEP.replace("[base, ptq-int8, kd]", "[base, kd]").replace("[0, 1]", "[1, 2]"))
    paths, listed = report.build(plan.load_sweep(path), work, tmp_path / "reports")
    assert [row.seed for row in listed.rows] == [1] and not capsys.readouterr().err
    with h5py.File(paths.merged) as file:
        assert list(file["cells"]) == listed.ids == [p.name for p in paths.artifacts.iterdir()]


def test_a_damaged_report_is_made_anew_and_one_of_a_later_version_is_not(sweep, work, tmp_path):
    paths = report.build(sweep, work, tmp_path / "reports")[0]
    whole = paths.merged.read_bytes()
    paths.merged.write_bytes(whole[:-1] + b"x")
    report.build(sweep, work, tmp_path / "reports")
    assert paths.merged.read_bytes() == whole
    store.change_hdf5(paths.merged, lambda file: file.attrs.modify("format", 99))
    later = paths.merged.read_bytes()
    for make in (report.build, report.read):
        with pytest.raises(UserError, match="format 99, this netpress reads"):
            make(sweep, work, out=tmp_path / "reports")
    with pytest.raises(UserError, match="format 99"):
        report.check_folder(sweep, tmp_path / "reports")
    assert paths.merged.read_bytes() == later


def test_models_of_an_earlier_report_stay_where_the_work_root_has_none(sweep, work, tmp_path):
    paths = report.build(sweep, work, tmp_path / "reports", artifact_bytes=10**9)[0]
    kept = {p: p.read_bytes() for p in paths.artifacts.rglob("*") if p.is_file()}
    shutil.rmtree(work.root)
    for most in (10**9, None):
        report.build(sweep, work, tmp_path / "reports", most, paths.folder)
        assert {p: p.read_bytes() for p in paths.artifacts.rglob("*") if p.is_file()} == kept
    other = report.build(sweep, work, tmp_path / "other", 10**9, paths.folder)[0]
    assert len(kept) > 4 and not other.artifacts.exists()


def test_an_earlier_report_that_is_damaged_or_none_is_no_source(sweep, work, tmp_path):
    paths = report.build(sweep, work, tmp_path / "reports")[0]
    with pytest.raises(FileNotFoundError):
        report.build(sweep, work, tmp_path / "reports", earlier=tmp_path)
    paths.merged.write_bytes(paths.merged.read_bytes()[:-1] + b"x")
    with pytest.raises(Corrupt):
        report.as_json(report.read(sweep, work, paths.folder))


def h5py_content(path):
    with h5py.File(path) as file:
        return content(file)


# --- evidence --------------------------------------------------------------------------------


def test_evidence_is_what_was_recorded(sweep, work, tmp_path):
    cell = sweep.cells[2]
    k = 3
    differing = {
        "pixels": numpy.zeros((k, 1, 8, 8), numpy.uint8),
        "index": numpy.arange(k),
        "distance": numpy.ones(k, numpy.float32),
    }
    differing |= {name: numpy.ones(k, numpy.uint16) for name in ("own", "base", "label")}
    measured = values(cell) | {f"differing/{name}": value for name, value in differing.items()}
    results.publish(cell, work, measured)
    recorded = merged.write(sweep, work, tmp_path / "results.h5").evidence(cell.id)
    assert [stage.stage for stage in recorded.history] == ["train", "finetune"]
    assert recorded.labels.tolist() == LABELS.tolist() and recorded.channels.shape == (13,)
    assert set(recorded.differing) == set(differing) and recorded.differing["pixels"].shape == (
        k,
        1,
        8,
        8,
    )
    assert recorded.latency[BATCH1].shape == (20,)


@pytest.mark.parametrize(
    "changed",
    [
        {"predictions": LABELS[:5]},
        {"differing/pixels": numpy.zeros((2, 1, 4, 4), numpy.uint8)},
        {BATCH1.name: numpy.array([1.0, numpy.nan])},
    ],
)
def test_what_makes_no_sense_counts_as_not_there(sweep, work, tmp_path, changed):
    cell = sweep.cells[2]
    results.publish(cell, work, values(cell) | changed)
    recorded = merged.write(sweep, work, tmp_path / "results.h5").evidence(cell.id)
    name = next(iter(changed))
    if name == "predictions":
        assert recorded.predictions is None and recorded.labels is None
    assert recorded.differing is None
    assert (BATCH1 in recorded.latency) != name.startswith("latency")


def test_there_is_no_evidence_without_a_valid_result(sweep, work, tmp_path):
    result = work.cell(sweep.cells[0].id).result
    result.write_bytes(result.read_bytes()[:-1])
    ask = merged.write(sweep, work, tmp_path / "results.h5").evidence
    assert ask(frames.in_order(sweep)[-1].id) is None and ask("0" * 16) is None
    assert ask(sweep.cells[0].id) is None


# --- a file of others ------------------------------------------------------------------------


def test_a_flipped_bit_or_a_cut_end_is_found(published):
    whole = published.path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for changed in (bytes(flipped), whole[:-1], b"", whole[512:]):
        published.path.write_bytes(changed)
        with pytest.raises(Corrupt):
            merged.read(published.path)


def changed_and_sealed(path, change) -> None:
    """Somebody else's file, with a checksum that matches."""
    with h5py.File(path, "r+") as file:
        change(file)
    path.write_bytes(store.sealed(path.read_bytes()))


def first(file):
    return next(iter(file["cells"].values()))


def external_link(file):
    file["cells"]["x"] = h5py.ExternalLink("/etc/other.h5", "/x")


def soft_link(file):
    first(file)["measure/x"] = h5py.SoftLink("/text")


def soft_link_as_text(file):
    del file["text"]
    file["text"] = h5py.SoftLink("/gaps")


def external_storage(file):
    first(file)["measure"].create_dataset("x", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("missing.h5", "x", (4,))
    first(file)["measure"].create_virtual_dataset("x", layout)


def bomb(file):
    size = hdf5.MOST_BYTES + 1
    made = first(file)["measure"].create_dataset("x", (size,), "u1", chunks=(size,), compression=9)
    made.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 20)))


def never_written(file):
    first(file)["measure"].create_dataset("x", (2**40,), "f8", chunks=(2**20,), compression=9)


def half_written(file):
    made = first(file)["measure"].create_dataset("x", (2000,), "f8", chunks=(1000,), compression=1)
    made[:1000] = 1.0


def a_plug_in(file):
    """LZ4, by its registered number: HDF5 would look for a library to load."""
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((10,))
    made.set_filter(32004, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((10,))
    group = first(file)["measure"].id
    h5py.h5d.create(group, b"x", h5py.h5t.NATIVE_DOUBLE, space, made).write_direct_chunk(
        (0,), b"\0" * 80
    )


def another_member(file):
    file.create_group("more")


def another_cell(file):
    file["cells"].copy(first(file), "0" * 16)


def a_cell_less(file):
    del file["cells"][next(iter(file["cells"]))]


def swapped(file):
    one, two, *_ = file["cells"]
    file["cells"].move(one, "x")
    file["cells"].move(two, one)
    file["cells"].move("x", two)


def no_accuracy(file):
    del first(file)["measure/accuracy"]


def gaps_of_a_kind(file):
    del file["gaps"]
    hdf5.put(file, "gaps", '[{"cell": 3}]')


def deep_json(file):
    del file["gaps"]
    hdf5.put(file, "gaps", "[" * 100_000)


def a_name_that_leads_away(file):
    file.attrs["name"] = "../../etc"


def text_of(cell, name, **changed):
    """The JSON in an attribute, with some keys changed."""
    cell.attrs[name] = json.dumps(json.loads(cell.attrs[name]) | changed)


def facts_of_another_shape(file):
    text_of(first(file), "facts", hardware=["a CPU"])


def a_number_no_machine_has(file):
    first(file).attrs["facts"] = '{"seconds": 1' + "0" * 400 + "}"


def not_a_number(file):
    first(file).attrs["facts"] = '{"seconds": NaN}'


def half_a_character(file):
    first(file).attrs["facts"] = '{"commit": "\\ud800"}'


def facts_a_thousand_times(file):
    kind = h5py.string_dtype()
    first(file).attrs.create("facts", numpy.array(["{}"] * 1000, dtype=object), dtype=kind)


def a_technique_that_is_no_name(file):
    text_of(first(file), "cell", technique=["x"])


def a_technique_that_speaks(file):
    text_of(first(file), "cell", technique="\x1b]0;x\x07")


def usage_without_end(file):
    del file["usage"]
    requested = '{"cores": 1' + "0" * 400 + ', "memory_bytes": 1}'
    used = '{"memory_bytes": 1, "cores": 1, "gpu_memory_bytes": 1, "gpu_busy": NaN}'
    record = f'{{"job": "1", "asked": {requested}, "used": {used}}}'
    hdf5.put(file, "usage", f'{{"{first(file).attrs["id"]}": {record}}}')


def order_of_numbers(file):
    del file["order"]
    hdf5.put(file, "order", "[1, 2]")


def order_of_many(file):
    del file["order"]
    hdf5.put(file, "order", f"[{'[],' * 4_000_000}[]]")


def a_file_of_negative_size(file):
    first(file).attrs["artifact"] = '{"model.onnx": {"bytes": "-1", "sha256": "x"}}'


def predictions_as_text(file):
    del first(file)["measure/predictions"]
    hdf5.put(first(file)["measure"], "predictions", "0 1 2")


def classes_beyond_counting(file):
    del first(file)["measure/labels"]
    hdf5.put(first(file)["measure"], "labels", numpy.array([2**62], numpy.uint64))


def a_name_that_moves_the_cursor(file):
    hdf5.put(first(file)["measure"], "\x1b[2J", 1.0)


def epochs_in_a_square(file):
    history = first(file)["history/0-train"]
    del history["epoch"]
    history["epoch"] = numpy.ones((2, 2))


def eight_names_of_one_array(file):
    """8 x 240 MB in 1 MB, each of them larger than a result may be."""
    group, chunk = first(file)["measure"], zlib.compress(bytes(8_000_000), 9)
    made = group.create_dataset("x0", (30_000_000,), "f8", chunks=(1_000_000,), compression=9)
    for i in range(30):
        made.id.write_direct_chunk((i * 1_000_000,), chunk)
    for i in range(1, 8):
        group[f"x{i}"] = group["x0"]


def names_of_one_array(file):
    """Each is small enough, all of them are not."""
    group = first(file)["measure"]
    group["x0"] = numpy.ones(200_000)
    for i in range(1, 100):
        group[f"x{i}"] = group["x0"]


@pytest.mark.parametrize(
    "change",
    [
        facts_of_another_shape,
        a_number_no_machine_has,
        not_a_number,
        half_a_character,
        facts_a_thousand_times,
        a_technique_that_is_no_name,
        a_technique_that_speaks,
        usage_without_end,
        order_of_numbers,
        order_of_many,
        predictions_as_text,
        classes_beyond_counting,
        a_name_that_moves_the_cursor,
        epochs_in_a_square,
        eight_names_of_one_array,
        names_of_one_array,
    ],
)
def test_what_is_not_of_its_type_is_one_sentence(published, change):
    changed_and_sealed(published.path, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((Corrupt, UserError), match=r"results\.h5: ") as refusal:
        again = merged.read(published.path)
        for cell_id in again.frames.ids:
            again.result(cell_id)
    assert len(str(refusal.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


def test_such_a_file_is_one_sentence_of_every_command(published, capfd):
    changed_and_sealed(published.path, usage_without_end)
    for command in (["report"], ["report", "--json"], ["verify", "--no-accuracy", "--no-speed"]):
        code = cli.main([command[0], str(published.path.parent), *command[1:]])
        out, err = capfd.readouterr()
        line, *summary = (err or out).splitlines()
        assert code in (1, 2) and len(summary) <= 1, (out, err)
        assert "results.h5" in line and line.isprintable() and len(line) <= 600


def test_files_of_an_artifact_are_typed_too(published):
    changed_and_sealed(published.path, a_file_of_negative_size)
    again = merged.read(published.path)
    with pytest.raises(Corrupt):
        again.artifact(again.frames.ids[0])


@pytest.mark.parametrize(
    "change",
    [
        external_link,
        soft_link,
        soft_link_as_text,
        external_storage,
        virtual,
        bomb,
        never_written,
        half_written,
        a_plug_in,
        another_member,
        another_cell,
        a_cell_less,
        swapped,
        no_accuracy,
        gaps_of_a_kind,
        deep_json,
        a_name_that_leads_away,
    ],
)
def test_a_file_built_to_mislead_is_refused(published, change):
    changed_and_sealed(published.path, change)
    with pytest.raises(Corrupt):
        merged.read(published.path)


def test_another_versions_file_is_told_as_such(published):
    def other_cell(file):
        cell = json.loads(first(file).attrs["cell"])
        first(file).attrs["cell"] = json.dumps(cell | {"recipe": cell["recipe"] | {"new": 1}})

    changed_and_sealed(published.path, other_cell)
    with pytest.raises(UserError, match=f"made by netpress {__version__}, this is other code: "):
        merged.read(published.path)
    changed_and_sealed(published.path, lambda file: file.attrs.modify("format", 99))
    with pytest.raises(UserError, match="format 99, this netpress reads 1"):
        merged.read(published.path)


def test_a_folder_or_a_device_is_no_results(tmp_path):
    (tmp_path / "results.h5").mkdir()
    for path in (tmp_path / "results.h5", "/dev/zero"):
        with pytest.raises(Corrupt, match="not a plain file"):
            store.check_seal(path)


# --- writing it ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["200k", "1m", "3m"])
def test_a_full_disk_leaves_what_was_there(tmp_path, size):
    sweep, work = many.sweep(100), Work(tmp_path / "work")
    many.publish(sweep, work)
    with cells.small_disk(tmp_path / "small", size) as folder:
        (folder / "results.h5").write_bytes(b"as before")
        with pytest.raises(OSError, match=r"No space left on device: '.*/results\.h5'"):
            merged.write(sweep, work, folder / "results.h5")
        assert os.listdir(folder) == ["results.h5"]
        assert (folder / "results.h5").read_bytes() == b"as before"


def test_what_fails_on_the_way_leaves_nothing(sweep, work, tmp_path, monkeypatch):
    def no_more(*_):
        raise MemoryError

    monkeypatch.setattr(merged, "_put_cell", no_more)
    with pytest.raises(MemoryError):
        merged.write(sweep, work, tmp_path / "new" / "results.h5")
    assert os.listdir(tmp_path / "new") == []


def test_it_is_private(published):
    assert published.path.stat().st_mode & 0o777 == 0o600


def test_looking_changes_nothing_in_the_work_root(sweep, work, tmp_path):
    def seen():
        return {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in work.root.rglob("*")}

    for path in work.root.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = seen()
    report.build(sweep, work, tmp_path / "reports")
    report.as_json(report.read(sweep, work))
    assert seen() == before


def test_hdf5_of_a_result_with_a_link_is_no_result(sweep, work, tmp_path):
    """A seal and a manifest prove nothing about what is in a file."""
    cell = sweep.cells[0]
    buffer = io.BytesIO(work.cell(cell.id).result.read_bytes())
    with h5py.File(buffer, "r+") as file:
        file["history/0-train/x"] = h5py.ExternalLink("/etc/other.h5", "/x")
    work.cell(cell.id).result.write_bytes(store.sealed(buffer.getvalue()))
    store.write_manifest(work.cell(cell.id))
    published = merged.write(sweep, work, tmp_path / "results.h5")
    assert [gap.cell.id for gap in published.frames.gaps][0] == cell.id
    assert "leads out" in published.frames.gaps[0].reason
    merged.read(published.path)


def test_a_cell_that_another_sweep_made_is_called_what_this_one_calls_it(sweep, work, tmp_path):
    """With its operating points beside it, a `kd` that is there already is `kd-0.9`."""
    path = tmp_path / "points.yaml"
    path.write_text(SWEEP + "grid: {kd: {distill.soft: [0.9, 0.5]}}\n")
    points = plan.load_sweep(path)
    shared = {cell.id for cell in points.cells} & {cell.id for cell in sweep.cells}
    assert {points.by_id[i].technique for i in shared} == {"base", "ptq-int8", "kd-0.9"}
    written = merged.write(points, work, tmp_path / "points.h5")
    again = merged.read(tmp_path / "points.h5")
    assert "kd-0.9" in set(written.frames.cells["technique"])
    assert again.frames.cells.equals(written.frames.cells)
    assert again.frames.gaps == written.frames.gaps
