"""Names that `fastmaml.compat` has otherwise or not at all, and why: patterns as of `fnmatch`.

A pattern that matches nothing different is an error, so that the list stays as short as it can be.
"""

from __future__ import annotations

PRIVATE = (
    "higher.optim._GroupedGradsType",
    "higher.optim._add",
    "higher.patch._MonkeyPatchBase",
    "higher.utils._copy_tensor",
    "higher.utils._recursive_map",
)
"""Names with an underscore that public scripts use."""

HIGHER = {
    "higher.optim.DifferentiableR[Mp]*": "the peer's signature hands everything on",
    "higher.patch._MonkeyPatchBase": "for annotations and isinstance: made by monkeypatch alone",
}

_STRICT = "another keyword is an error, where the peer ignores it"
_INSIDE = "of the peer's own working: scripts have no use for it"
_DATA = "how the peer keeps and reads its files; scripts take items, lengths and labels"
_ADDRESS = "addresses and names of files, which the error about absent files tells"
_OLD_GYM = "the old gym's interface; gymnasium's here"
_METAWORLD = "a name that says what to do: the releases that the peer wraps are gone"
_PROCESSES = "of processes; AsyncVectorEnv steps its environments in this one"
_PLACE = "in the package above, not in a file of this name"
_BUILT = "made in a loop; names and shapes are held by the networks' state_dict"

LEARN2LEARN = {
    "learn2learn.algorithms.*GBML": _STRICT,
    "learn2learn.algorithms.lightning.*.data_parallel": "for several GPUs there is Lightning's own",
    "learn2learn.data.*.Cython*": _INSIDE,
    "learn2learn.data.transforms.*.filtered_indices": _INSIDE,
    "learn2learn.data.transforms.*.indices_to_labels": _INSIDE,
    "learn2learn.data.transforms.*.remap": _INSIDE,
    "learn2learn.data.utils.[CSgs]*": _INSIDE,
    "learn2learn.gym.async_vec_env.AsyncVectorEnv.closed": _PROCESSES,
    "learn2learn.gym.async_vec_env.AsyncVectorEnv.lock": _PROCESSES,
    "learn2learn.gym.async_vec_env.AsyncVectorEnv.queue": _PROCESSES,
    "learn2learn.gym.async_vec_env.AsyncVectorEnv.remotes": _PROCESSES,
    "learn2learn.gym.async_vec_env.AsyncVectorEnv.step_*": _PROCESSES,
    "learn2learn.gym.async_vec_env.AsyncVectorEnv.waiting": _PROCESSES,
    "learn2learn.gym.async_vec_env.AsyncVectorEnv.work*": _PROCESSES,
    "learn2learn.gym.envs.SubprocVecEnv": _PROCESSES,
    "learn2learn.gym.envs.subproc_vec_env.*": _PROCESSES,
    "learn2learn.gym.envs.metaworld.*": _METAWORLD,
    "learn2learn.gym.envs.mujoco.*.mass_center": _INSIDE,
    "learn2learn.gym.envs.mujoco.[adh]*.*Env": _PLACE,
    "learn2learn.gym.envs.mujoco.*.re[ns]*": _OLD_GYM,
    "learn2learn.gym.envs.mujoco.*.viewer_setup": _OLD_GYM,
    "learn2learn.gym.envs.mujoco.MujocoEnv*": "gymnasium's class of that name",
    "learn2learn.gym.envs.particles.Particles2DEnv.re[ns]*": _OLD_GYM,
    "learn2learn.gym.envs.particles.Particles2DEnv.seed": _OLD_GYM,
    "learn2learn.gym.envs.particles.particles_2d.*": _PLACE,
    "learn2learn.nn.kroneckers.KroneckerLSTM.W_*": _BUILT,
    "learn2learn.nn.metaoptnet.[Eko]*": _INSIDE,
    "learn2learn.nn.metaoptnet.SVClassifier.*": _INSIDE,
    "learn2learn.nn.metaoptnet.svm_logits": "calls qpth; SVClassifier solves the program itself",
    "learn2learn.nn.protonet.EPS": _INSIDE,
    "learn2learn.optim.transforms.*.get_kronecker_dims": _INSIDE,
    "learn2learn.optim.transforms.*.n_*": _INSIDE,
    "learn2learn.text.datasets.*.df_data": _DATA,
    "learn2learn.text.datasets.*.roberta": _DATA,
    "learn2learn.utils.lightning.*.on_validation_end": "its argument has Lightning's name",
    "learn2learn.*warn_once": _INSIDE,
    "learn2learn.vision.benchmarks.*_tasksets": _STRICT,
    "learn2learn.vision.benchmarks.omniglot_benchmark.LANCZOS": "Pillow's own name",
    "learn2learn.vision.datasets.*.*_DIR": _ADDRESS,
    "learn2learn.vision.datasets.*.*_FILENAME": _ADDRESS,
    "learn2learn.vision.datasets.*.*_ID": _ADDRESS,
    "learn2learn.vision.datasets.*.*_LINK": _ADDRESS,
    "learn2learn.vision.datasets.*.*_PATH": _ADDRESS,
    "learn2learn.vision.datasets.*.*_URL": _ADDRESS,
    "learn2learn.vision.datasets.*.GCLOUD_BUCKET": _ADDRESS,
    "learn2learn.vision.datasets.*.IMAGENET_DUPLICATES": _DATA,
    "learn2learn.vision.datasets.*.SPLITS": _DATA,
    "learn2learn.vision.datasets.*.bounding_boxes": _DATA,
    "learn2learn.vision.datasets.*.class_idx": _DATA,
    "learn2learn.vision.datasets.*.data": _DATA,
    "learn2learn.vision.datasets.*.data_map": _DATA,
    "learn2learn.vision.datasets.*.dataset": _DATA,
    "learn2learn.vision.datasets.*.download": "nothing is downloaded",
    "learn2learn.vision.datasets.*.download_pkl": "nothing is downloaded",
    "learn2learn.vision.datasets.*.index_classes": _DATA,
    "learn2learn.vision.datasets.*.indices_to_labels": _DATA,
    "learn2learn.vision.datasets.*.labels_to_indices": _DATA,
    "learn2learn.vision.datasets.*.length": _DATA,
    "learn2learn.vision.datasets.*.load_*": _DATA,
    "learn2learn.vision.datasets.*.offsets": _DATA,
    "learn2learn.vision.datasets.*.processed_root": _DATA,
    "learn2learn.vision.datasets.*.raw_path": _DATA,
    "learn2learn.vision.datasets.*.root": _DATA,
    "learn2learn.vision.datasets.*.y": _DATA,
    "learn2learn.vision.models.cnn4.truncated_normal_": "torch has it: nn.init.trunc_normal_",
    "learn2learn.vision.models.download_file": "nothing is downloaded",
    "learn2learn.vision.models.resnet12.BasicBlock*": _BUILT,
    "learn2learn.vision.models.resnet12.ResNet12Backbone.*": _BUILT,
    "learn2learn.vision.models.resnet12.conv3x3": _BUILT,
    "learn2learn.vision.models.wrn28.WRN28Backbone.in_planes": _BUILT,
    "learn2learn.vision.models.wrn28.WideResNet": _BUILT,
    "learn2learn.vision.models.wrn28.conv*": _BUILT,
    "learn2learn.vision.models.wrn28.wide_basic": _BUILT,
}

EXPLAINED = {"learn2learn": LEARN2LEARN, "higher": HIGHER}
