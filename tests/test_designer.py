"Networks under edit: blocks that are never lost, tables that equal the summary, the first block that does not fit, and the panel."

import html
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnbench.config import replace_all
from cnnbench.control import prepare_again
from cnnbench.core import UsageError
from cnnbench.designer import (
    MENU,
    all_blocks,
    block_at,
    costs_figure,
    costs_of,
    duplicate_block,
    insert_block,
    layer_groups,
    layer_table,
    layers_html,
    loose_blocks,
    model_panel,
    move_block,
    moved_place,
    nearest_place,
    network_names,
    parameters_of,
    remove_block,
    set_parameter,
    spec_table,
    taken_settings,
    totals_html,
    with_network,
)
from cnnbench.experiment import Experiment, experiment_for
from cnnbench.layers import BLOCKS
from cnnbench.models import LENET, RESNET9, Block, ModelConfig, build_model, format_spec, parse_spec, summarize
from cnnbench.tasks import TASKS, TaskConfig, make_task
from cnnbench.ui import Desk, undo

SHAPE = (3, 32, 32)
CLASSES = tuple("abcdefg")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "The tests look at shapes: more threads gain nothing."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.modules.setdefault(__name__, sys.modules[Doubled.__module__])
    yield
    torch.set_num_threads(before)


class Doubled(nn.Module):
    "A user's own block."

    def __init__(self, shape, times: int = 2):
        super().__init__()
        if times > 8: raise UsageError(f"has {times} times, which are too many.")
        self.times = times

    def forward(self, images): return torch.cat([images] * self.times, 1)


class Counted(nn.Module):
    "A user's own network that needs numbers while it is built."

    def __init__(self, shape, outputs, config):
        super().__init__()
        self.head = nn.Linear(shape[0], outputs)
        if self.head.weight.std().item() == 0: raise ValueError("no spread")

    def forward(self, images): return self.head(images.mean((2, 3)))


class Broken(nn.Module):
    "A user's own network that cannot be built."

    def __init__(self, shape, outputs, config): raise KeyError("missing")


words = st.sampled_from([*(word for word in BLOCKS if word not in ("sigmoid", "tanh")), "covn", "my_module:block"])
sizes = st.tuples(st.integers(0, 9), st.integers(0, 9))
values = st.one_of(st.integers(-3, 300), st.booleans(), st.floats(0.001, 100), st.sampled_from(["classes", "max", "abc"]), sizes)
options = st.dictionaries(st.sampled_from(["kernel", "stride", "pad", "rate"]), values, max_size=2).map(lambda held: tuple(held.items()))
flat = st.builds(Block, words, st.lists(values, max_size=3).map(tuple), options)
trees = st.recursive(flat, lambda inner: st.builds(replace, flat, inside=st.lists(inner, max_size=3).map(tuple)), max_leaves=6)
specs = st.lists(trees, max_size=5).map(tuple)
nested = st.recursive(flat, lambda inner: st.lists(inner, max_size=3).map(lambda held: Block("residual", inside=tuple(held))), max_leaves=6)


def texts(blocks): return sorted(str(replace(block, inside=())) for _, block in all_blocks(blocks))


@given(specs)
def test_any_blocks_survive_their_text(blocks):
    assert loose_blocks(format_spec(blocks)) == blocks
    try: strict = parse_spec(format_spec(blocks))
    except UsageError: return
    assert strict == blocks


@given(st.text("convresidual 123x=(),\n", max_size=40))
def test_any_text_is_read_or_refused(text):
    try: blocks = loose_blocks(text)
    except UsageError: return
    assert loose_blocks(format_spec(blocks)) == blocks


@settings(max_examples=50, deadline=None)
@given(st.lists(nested, min_size=1, max_size=4).map(tuple), st.data())
def test_edits_lose_no_blocks(blocks, data):
    "Insert adds, remove takes away what is at the place and no more, duplicate adds that, move keeps all and can be undone by its opposite."
    spec, count = format_spec(blocks), len(all_blocks(blocks))
    place, block = data.draw(st.sampled_from(all_blocks(blocks)))
    inside = [block, *(held for _, held in all_blocks(block.inside))]
    own = [str(replace(held, inside=())) for held in inside]

    more = loose_blocks(insert_block(spec, place, "relu, tanh"))
    assert (str(block_at(more, place)), len(all_blocks(more))) == ("relu", count + 2)
    assert remove_block(remove_block(format_spec(more), place), place) == spec
    assert texts(loose_blocks(duplicate_block(spec, place))) == sorted([*texts(blocks), *own])
    assert sorted([*texts(loose_blocks(remove_block(spec, place))), *own]) == texts(blocks)
    for by in (1, -1):
        moved, target = move_block(spec, place, by), moved_place(spec, place, by)
        assert texts(loose_blocks(moved)) == texts(blocks)
        assert block_at(loose_blocks(moved), target) == block
        if target != place: assert (move_block(moved, target, -by), moved_place(moved, target, -by)) == (spec, place)


@given(st.sampled_from(list(MENU)), st.data())
def test_a_parameter_is_set_and_let_go(word, data):
    spec = MENU[word][1].format(channels=16, outputs="classes")
    known = parameters_of(loose_blocks(spec)[0])
    if not known: return
    parameter, value = data.draw(st.sampled_from(known)), data.draw(values)
    after = set_parameter(f"relu, {spec}", (1,), parameter.name, value)
    held = next(item for item in parameters_of(block_at(loose_blocks(after), (1,))) if item.name == parameter.name)
    assert held.shown() == value and after.startswith("relu, ")
    others = [item for item in parameters_of(loose_blocks(after)[1]) if item.name != parameter.name]
    assert [item.shown() for item in others] == [item.shown() for item in known if item.name != parameter.name]
    let_go = parameters_of(loose_blocks(set_parameter(after, (1,), parameter.name, None))[1])
    assert next(item for item in let_go if item.name == parameter.name).shown() == parameter.default


steps = st.tuples(st.sampled_from(["add", "remove", "copy", "up", "down", "set"]), st.integers(0, 99), st.sampled_from(list(MENU)), values)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([LENET, RESNET9, "conv 8, residual(conv 8, norm), global, linear classes"]), st.lists(steps, min_size=1, max_size=12))
def test_random_edits_keep_every_block_and_end_in_a_table(spec, edits):
    "Whatever is done, no error but UsageError comes, the text reads back, and the table ends at one block or not at all."
    for kind, number, word, value in edits:
        blocks = loose_blocks(spec)
        listed = all_blocks(blocks)
        place = listed[number % len(listed)][0] if listed else (0,)
        try:
            if kind == "add": spec = insert_block(spec, place, MENU[word][1].format(channels=8, outputs="classes"))
            elif kind == "remove": spec = remove_block(spec, place)
            elif kind == "copy" and len(listed) < 40: spec = duplicate_block(spec, place)
            elif kind in ("up", "down"): spec = move_block(spec, place, 1 if kind == "down" else -1)
            elif kind == "set":
                names = [item.name for item in parameters_of(block_at(blocks, place))]
                if names: spec = set_parameter(spec, place, names[number % len(names)], value)
        except UsageError: assert not listed
        assert format_spec(loose_blocks(spec)) == format_spec(loose_blocks(format_spec(loose_blocks(spec))))
    table = spec_table(spec, SHAPE, 7)
    assert bool(table.problem) == (table.summary.output != (7,) or bool(table.place)) or not loose_blocks(spec)
    if table.place: block_at(loose_blocks(spec), table.place)  # a block that is there
    assert html.escape(table.problem) in layers_html(table, 64)
    costs_figure(table)


@pytest.mark.parametrize("name", ["lenet", "resnet9", "backbone", "resnet18", "mobilenet_v3_small", "spec"])
@pytest.mark.parametrize("change", [{}, {"dropout": 0.3}], ids=["plain", "dropout"])
def test_table_equals_summary_of_classifiers(name, change):
    config = ModelConfig(name, spec="conv 8 5x5 stride=2, residual(conv 12, norm), global, linear classes" if name == "spec" else "", **change)
    table = layer_table(config, SHAPE, 7, make_task(TaskConfig(), CLASSES).build)
    assert table.summary == summarize(build_model(config, SHAPE, 7, (0,) * 3, (1,) * 3), SHAPE)
    assert (table.problem, table.note, table.place) == ("", "", ())


@pytest.mark.parametrize("name", ["lenet", "resnet9"])
def test_width_makes_a_table_of_wider_layers(name):
    wide, plain = (layer_table(ModelConfig(name, width=width), SHAPE, 7).summary for width in (2, 1))
    assert wide.parameters > 3 * plain.parameters and wide.output == plain.output


@pytest.mark.parametrize(("kind", "name", "shape"), [
    ("detection", "centre", (3, 64, 64)), ("segmentation", "unet", (3, 64, 64)), ("generation", "dcgan", (1, 32, 32)),
    *(("video", name, (4, 3, 32, 32)) for name in ("difference", "frames", "shift", "single", "conv3d", "conv2plus1d")),
])
def test_table_equals_summary_of_other_tasks(kind, name, shape):
    task, channels = make_task(TaskConfig(name=kind), CLASSES), shape[-3]
    table = layer_table(ModelConfig(name), shape, len(CLASSES), task.build)
    assert table.summary == summarize(task.build(ModelConfig(name), shape, (0.0,) * channels, (1.0,) * channels), shape)
    rows = [row for _, group in layer_groups(table) for row in group]
    assert rows == list(range(len(table.summary.layers))) and not table.problem
    assert sum(cost.parameters for cost in costs_of(table, 1000, 0)) == table.summary.parameters


def test_building_a_table_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    layer_table(ModelConfig("regnet_y_400mf"), SHAPE, 7, make_task(TaskConfig(), CLASSES).build)  # needs numbers while it is built
    spec_table(RESNET9, SHAPE, 7)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("spec", [LENET, RESNET9], ids=["lenet", "resnet9"])
@pytest.mark.parametrize("wrong", ["linear", "conv", "covn 3", "max 99", "norm momentum=high"])
def test_rows_end_at_the_first_block_that_does_not_fit(spec, wrong):
    "Put anywhere, the rows before it are those of the whole network, and it is named by its place."
    whole = spec_table(spec, SHAPE, 7)
    for place, _ in all_blocks(loose_blocks(spec))[::4]:
        table = spec_table(insert_block(spec, place, wrong), SHAPE, 7)
        assert table.place == place and table.problem.startswith(f"Block {'.'.join(str(at + 1) for at in place)}, `{wrong}`")
        around = [row for row in whole.summary.layers if row.name.endswith("around")]
        before = [row for row, where in zip(whole.summary.layers, whole.places, strict=True) if where < place and row not in around]
        assert list(table.summary.layers) == before
        assert set(table.places) <= {(), *(where for where, _ in all_blocks(loose_blocks(spec)))}


def test_the_first_of_several_wrong_blocks_is_told():
    table = spec_table("conv 8, flatten, conv 8, linear, covn", SHAPE, 7)
    assert (table.place, len(table.summary.layers)) == ((2,), 3) and "put conv before flatten" in table.problem


def test_what_a_network_lacks_at_its_end_is_told_at_its_last_block():
    table = spec_table("conv 8, global", SHAPE, 7)
    assert (table.place, len(table.summary.layers)) == ((1,), 4) and table.problem.endswith("end it with `linear classes`.")
    assert "no dropout" in spec_table("conv 7, global", SHAPE, 7, dropout=0.5).problem


def test_blocks_and_networks_of_ones_own():
    own = f"{__name__}:Doubled"
    table = spec_table(f"conv 4, {own}, global, linear classes", SHAPE, 7)
    assert (table.problem, table.summary.layers[2].output) == ("", (8, 32, 32))
    assert [item.name for item in parameters_of(Block(own))] == ["times"]
    assert spec_table(f"conv 4, {own} 9, global, linear classes", SHAPE, 7).place == (1,)
    assert spec_table("conv 4, no_such_module:block, global, linear classes", SHAPE, 7).place == (1,)
    build = make_task(TaskConfig(), CLASSES).build
    assert layer_table(ModelConfig(f"{__name__}:Counted"), SHAPE, 7, build).summary.parameters == 28
    assert layer_table(ModelConfig(f"{__name__}:Broken"), SHAPE, 7, build).problem == "KeyError: 'missing'"


def test_a_network_larger_than_any_memory_is_listed():
    table = spec_table("flatten, linear 1000000000, linear classes", SHAPE, 7)
    assert table.summary.parameters > 3e12 and not table.problem
    assert "3.08 T" in totals_html(table, 64)


def test_a_network_that_does_not_fit_is_listed_up_to_there():
    table = layer_table(ModelConfig("vgg11"), (3, 16, 16), 7, make_task(TaskConfig(), CLASSES).build)
    assert table.summary.layers[-1].name == "network.features.19" and "32x32 works" in table.problem
    table = layer_table(ModelConfig("fasterrcnn_mobilenet_v3_large_320_fpn"), (3, 64, 64), 7, make_task(TaskConfig(name="detection"), CLASSES).build)
    assert not table.problem and "without computing" in table.note and table.summary.parameters > 1e7
    assert "multiply-adds" not in totals_html(table, 64)


def test_a_table_shows_text_as_text():
    table = spec_table("conv <b>x</b>", SHAPE, 7)
    assert "<b>x" not in layers_html(table, 64) and "&lt;b&gt;x" in layers_html(table, 64)


@pytest.mark.parametrize("kind", TASKS)
def test_tasks_name_their_networks(kind):
    task, usual = make_task(TaskConfig(name=kind), CLASSES), experiment_for(kind).model.name
    names = network_names(task, usual)
    assert usual in task.networks() and names == task.networks() and len(set(names)) == len(names)
    for name in names: ModelConfig(name, spec=LENET if name == "spec" else "")
    assert network_names(object(), "own:network") == ["own:network"]


@pytest.mark.parametrize("before", ["lenet", "spec", "backbone", "resnet18", "unet", "dcgan", "conv3d"])
@pytest.mark.parametrize("after", ["lenet", "resnet18", "spec", "backbone", "dcgan"])
def test_another_network_keeps_what_it_takes(before, after):
    changed = {"width": 2.0, "dropout": 0.1, "backbone": "resnet18", "weights": "imagenet", "freeze": 1}
    kept = {name: value for name, value in changed.items() if name in taken_settings(before)}
    config = ModelConfig(before, spec=LENET if before == "spec" else "", **kept)
    made = with_network(config, after)
    assert made.name == after
    for name, value in kept.items():
        if name in taken_settings(after): assert getattr(made, name) == value


def test_a_place_that_is_gone_becomes_the_nearest():
    blocks = loose_blocks("conv 8, residual(conv 8, norm), relu")
    assert [nearest_place(blocks, place) for place in ((5,), (1, 7), (0, 1), ())] == [(2,), (1, 1), (0,), ()]


class At:
    "A panel on a desk, and what it shows when all is done."

    def __init__(self, experiment):
        self.desk = Desk(experiment, prepare_again)
        self.panel = model_panel(self.desk)
        self.of, self.editing = self.panel.of, self.panel.editing
        self.settle()

    def settle(self):
        assert self.desk.wait(60) and self.panel.wait(60)
        return self

    @property
    def table(self): return self.settle().editing.table

    @property
    def model(self): return self.settle().desk.store.config.model

    def choose(self, *place): self.editing.place = place

    def lines(self): return [row.button.description.strip() for row in self.of["list"].children if row in self.of["list"].rows]


@pytest.fixture
def at(): return At(Experiment())


def ran(at):
    held = {}
    exec(at.settle().panel.code(), held)
    return held


def test_panel_builds_a_network_from_nothing(at):
    at.of["empty"].click()
    assert (at.model.name, at.editing.spec, at.table.problem) == ("resnet9", "", "The list is empty: add a block, or start from a network.")
    for word in ("conv", "relu", "global", "linear"): at.of["add"].value = word
    assert at.model == ModelConfig("spec", spec="conv 16 3x3, relu, global avg, linear classes")
    assert (at.desk.problem, at.table.problem, at.editing.place) == ("", "", (3,))
    assert at.desk.setup.experiment.model == at.model
    at.choose(0)
    at.of["entries"].of["width"].value = 24
    at.of["entries"].of["kernel"].value = "5, 5"
    at.of["entries"].of["bias"].value = False
    at.settle()
    at.of["add"].value = "residual"
    assert at.model.spec == "conv 24 5x5 bias=no, residual(conv 24 3x3, norm, relu, conv 24 3x3, norm), relu, global avg, linear classes"
    assert at.editing.place == (1,)
    at.of["down"].click()
    at.of["copy"].click()
    at.of["up"].click()
    at.of["remove"].click()
    assert [block.word for block in loose_blocks(at.model.spec)] == ["conv", "relu", "residual", "global", "linear"]
    held = ran(at)
    assert held["result"] == at.table and held["result"].summary == summarize(held["model"], at.desk.setup.dataset.shape)


def test_panel_keeps_blocks_that_are_wrong(at):
    at.of["lenet"].click()
    assert at.model == ModelConfig("spec", spec=LENET)
    at.choose(0)
    at.of["entries"].of["kernel"].value = "five"
    assert at.model.spec == LENET and "has five for its kernel" in at.table.problem
    assert at.table.place == (0,) and "five" in at.of["list"].complaint.value
    children = at.of["list"].children
    assert children.index(at.of["list"].complaint) == 2  # after the block and its parameters
    assert ran(at)["result"] == at.table
    at.of["remove"].click()
    assert len(at.lines()) == 12 and at.table.problem == ""
    undo(at.desk.store)
    assert at.model.spec == LENET and len(at.lines()) == 13
    at.of["text"].value = "conv 8, residual(relu"
    assert "never closed" in at.table.problem and at.editing.spec == "conv 8, residual(relu" and at.model.spec == LENET
    at.of["add"].value = "relu"
    assert at.editing.spec == "conv 8, residual(relu"  # not lost
    at.of["text"].value = "conv 8, residual(relu), global, linear classes"
    assert at.table.problem == "" and at.lines() == ["1  conv 8", "2  residual ( … )", "2.1  relu", "3  global", "4  linear classes"]


def test_panel_shows_where_shapes_do_not_fit(at):
    at.of["lenet"].click()
    at.choose(6)
    at.of["remove"].click()  # flatten
    assert at.table.place == (6,) and "put flatten or global before it" in at.table.problem
    assert at.table.problem == at.desk.problem and "<div" not in at.of["problem"].value  # said once
    assert at.desk.setup.experiment.model.name == "resnet9"  # the last that could be built
    assert html.escape(at.table.problem) in at.of["layers"].value
    shapes = [row.shape.value for row in at.of["list"].rows[:7]]
    assert "6×28×28" in shapes[0] and "16×5×5" in shapes[5] and "×" not in shapes[6]
    assert not ran(at)["result"].summary.output == (10,)


def test_panel_starts_with_a_network_that_does_not_fit():
    at = At(replace_all(Experiment(), {"model.name": "spec", "model.spec": "conv 8, linear classes"}))
    assert at.desk.setup is None and "Block 2" in at.of["problem"].value and len(at.lines()) == 2
    assert at.panel.code().startswith("#")
    at.choose(0)
    at.of["add"].value = "global"
    assert at.table.problem == "" and at.desk.problem == "" and "<div" not in at.of["problem"].value


def test_panel_offers_settings_that_a_network_takes(at):
    at.of["width"].value = 2.0
    at.of["network"].value = "resnet18"
    assert at.model == ModelConfig("resnet18") and at.table.summary.parameters > 1e7
    at.of["network"].value = "backbone"
    at.of["backbone"].value = "resnet18"
    at.of["freeze"].value = 2
    assert (at.model.backbone, at.model.freeze) == ("resnet18", 2) and at.table.frozen > 0
    assert {"small", "resnet50"} <= set(at.of["backbone"].options)
    at.of["own"].value = "resnet19"
    assert at.model.name == "backbone" and "Did you mean" in at.table.problem and at.of["network"].value == "resnet19"
    at.editing.place = (3,)
    at.of["network"].value = "lenet"
    assert at.model == ModelConfig("lenet") and at.editing.place == () and not at.desk.store.draft and len(at.lines()) == 13
    at.of["network"].value = "spec"
    assert at.model == ModelConfig("spec", spec=LENET)


@pytest.mark.parametrize("width", [0.125, 1, 8])
def test_showing_the_panel_changes_no_setting(width):
    at = At(replace_all(Experiment(), {"model.width": width}))
    before, slider = at.desk.store.config, at.of["width"]
    places = (np.log10([1, 2]) - slider.min) / slider.step
    assert np.abs(places - places.round()).max() < 1e-9  # the slider can stand at 1 and at 2
    slider.value = slider.base ** (slider.min + round((np.log10(width) - slider.min) / slider.step) * slider.step)  # what the page gives back
    at.choose(3)
    at.choose()
    assert at.settle().desk.store.config is before
    slider.value = 2.0
    assert at.model.width == slider.value


def test_panel_follows_batch_size_and_bars(at):
    at.desk.store.set("train.batch_size", 8)
    assert "training a batch of 8" in at.settle().of["totals"].value
    chart = at.of["chart"]
    chart._handle_custom_msg({"kind": "click", "points": [{"curve": 0, "point": 1, "x": 1, "y": 1}]}, [])
    assert at.editing.place == (4,) and at.of["layers"].value.count("row chosen") == 1


@pytest.mark.parametrize("kind", TASKS)
def test_panel_of_every_task(kind):
    drawn = {"data.name": "shapes", "data.shapes.count": 40, "data.size": 32} | ({"data.frames": 4} if kind == "video" else {})
    at = At(experiment_for(kind, drawn))
    assert at.desk.problem == "" and at.table.problem == ""
    assert [value for _, value in at.of["network"].options] == at.desk.setup.task.networks()
    assert at.table.summary == summarize(at.desk.setup.build(), at.desk.setup.dataset.shape)
    held = ran(at)
    assert held["result"].summary == at.table.summary
    assert all(torch.equal(one, other) for one, other in zip(held["model"].parameters(), at.desk.setup.build().parameters(), strict=True))


def test_panel_follows_to_another_task(at):
    at.desk.store.config = replace_all(experiment_for("detection", {"data.shapes.count": 40, "data.size": 32}), {"model.name": "resnet9"})
    assert "There is no detector &#x27;resnet9&#x27;" in at.settle().of["problem"].value
    at.desk.store.config = experiment_for("detection", {"data.shapes.count": 40, "data.size": 32})
    assert at.settle().of["problem"].value == "" and at.table.summary == summarize(at.desk.setup.build(), at.desk.setup.dataset.shape)
    assert at.of["network"].value == "centre" and at.of["list"].layout.display == "none"
