"""The promise of the default settings: handwritten digits, a stratified fifth held out for testing."""

import numpy as np
import pytest

from cnnbench.config import to_dict
from cnnbench.experiment import Experiment, create_run, load_model, prepare, resolve, train_run


@pytest.mark.timeout(1800)
def test_default_settings_on_digits(tmp_path):
    "At least 99.0 % of the test images right for seed 0, and 99.2 % on average over seeds 0 to 4."
    accuracies = []
    for seed in range(5):
        setup, _ = resolve(prepare(Experiment(seed=seed)))
        counts = np.bincount(setup.dataset.targets[setup.split.test])
        assert (abs(counts - 0.2 * np.bincount(setup.dataset.targets)) <= 1).all()  # a fifth of each class
        folder = create_run(setup, tmp_path / str(seed))
        for _ in train_run(folder, setup): pass
        accuracies.append(setup.task.validate(load_model(folder, setup), setup.loader(setup.split.test)(0))["val_accuracy"])
    print(f"test accuracy over seeds 0 to 4: {[round(100 * value, 2) for value in accuracies]}, settings {to_dict(setup.experiment)['train']}")
    assert accuracies[0] >= 0.990 and np.mean(accuracies) >= 0.992, accuracies
