"""What a user may get wrong, as a table: the command, and what its one line says after the tool.

CONFIG stands for the recipe of the small task, RUN for a new OUTPUT_DIR. All commands are typed in
the folder of :func:`conftest.faulty`; each ends with status 2, and leaves every file as it was.
"""

from __future__ import annotations

from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {
    "train_gan": CONFIGS / "gan/digits.yaml",
    "eval_gan": CONFIGS / "gan/digits.yaml",
    "train_classifier": CONFIGS / "classification/digits.yaml",
    "train_net": CONFIGS / "detection/digits/mask_rcnn_digits_EvoNormS0.yaml",
    "analyze_model": CONFIGS / "detection/digits/mask_rcnn_digits_EvoNormS0.yaml",
}
# Of all three trainers.
CONFIG_FILES = """
absent.yaml      | absent.yaml
bomb.yaml        | bomb.yaml: could not determine a constructor for the tag
half.yaml        | half.yaml: while parsing a flow node
list.yaml        | list.yaml: not a config, which has KEY: VALUE lines
file             | file: not a config
loop.yaml        | loop.yaml: its _BASE_ leads back to itself
base.yaml        | nowhere.yaml
binary.yaml      | binary.yaml: 'utf-8' codec can't decode byte
"""
TABLE = """
train_gan CONFIG MODEL.NORM EvoNorm-S0            | MODEL.NORM: unknown norm-act 'EvoNorm-S0': did you mean 'EvoNormS0'?
train_gan CONFIG MODEL.NORM ''                    | MODEL.NORM: unknown norm-act ''
train_gan CONFIG MODEL.NORM 'x * sigmoid(v1 * x'  | '(' was never closed at character 12
train_gan CONFIG MODEL.NORM 'x * sigmoid(v7 * x)' | unknown name 'v7' at character 13: did you mean 'v1'?
train_gan CONFIG MODEL.NORM 'x / std_q(x)'        | unknown function 'std_q' at character 5: did you mean 'std_i'?
train_gan CONFIG MODEL.NORM '__import__("os").mkdir("exploded")' | is not a function at character 1
train_gan CONFIG MODEL.NORM GN                    | unknown norm-act 'GN': did you mean 'GN-ReLU'? known are
train_gan CONFIG MODEL.NROM EvoNormS0             | Non-existent key: MODEL.NROM: did you mean MODEL.NORM?
train_gan CONFIG SOLVER.LR_G 1                    | for config key: SOLVER.LR_G, which takes a float, such as
train_gan CONFIG MODEL.NORM                       | Override list has odd length
train_gan CONFIG MODEL.G_CH many                  | for config key: MODEL.G_CH
train_gan CONFIG MODEL.G_CH -3                    | MODEL.G_CH is -3, but should be more than 0
train_gan CONFIG MODEL.RESOLUTION 33              | MODEL.RESOLUTION is 33; known are 32, 64, 96
train_gan CONFIG MODEL.NUM_CLASSES 7              | but MODEL.NUM_CLASSES is 7
train_gan CONFIG SOLVER.BATCH_SIZE 0              | SOLVER.BATCH_SIZE is 0, but should be more than 0
train_gan CONFIG SOLVER.ACCUMULATE 3              | can't be divided by 1 processes times SOLVER.ACCUMULATE 3
train_gan CONFIG SOLVER.MAX_ITER -1               | SOLVER.MAX_ITER is -1, but should be more than 0
train_gan CONFIG SOLVER.LR_G 0.0                  | SOLVER.LR_G is 0.0, but should be more than 0
train_gan CONFIG SOLVER.LR_G nan                  | for config key: SOLVER.LR_G
train_gan CONFIG SOLVER.AMP fp8                   | SOLVER.AMP is 'fp8'; known are '', 'bf16', 'fp16'
train_gan CONFIG SOLVER.DIFF_AUGMENT colour       | 'colour' is not known; known are color, translation, cutout
train_gan CONFIG SOLVER.ADA 1.5                   | SOLVER.ADA is 1.5, but should be in [0, 1)
train_gan CONFIG SOLVER.ADA 0.6 SOLVER.ADA_AUGMENT blur | SOLVER.ADA_AUGMENT: 'blur' is not known; known are blit, geometry, color
train_gan CONFIG SOLVER.ADA 0.6 SOLVER.ADA_IMAGES 0 | SOLVER.ADA_IMAGES is 0, but should be more than 0
train_gan CONFIG SOLVER.ADA 0.6 SOLVER.DIFF_AUGMENT color | SOLVER.ADA and SOLVER.DIFF_AUGMENT both augment
train_gan CONFIG SOLVER.EMA_DECAY 1.0             | SOLVER.EMA_DECAY is 1.0, but should be in [0, 1)
train_gan CONFIG SEED -1                          | SEED is -1, but should not be negative
train_gan CONFIG SEED 99999999999999999999        | SEED is 99999999999999999999, but should not be
train_gan CONFIG DEVICE tpu                       | DEVICE: Expected one of cpu, cuda
train_gan CONFIG DATA.NAME mnist9                 | torchvision has no data set 'mnist9'
train_gan CONFIG DATA.ROOT texts                  | DATA.ROOT is texts, but DATA.NAME digits reads none
train_gan CONFIG DATA.NAME '' DATA.ROOT absent    | DATA.ROOT: absent does not exist
train_gan CONFIG DATA.NAME '' DATA.ROOT texts     | texts should hold a folder per class
train_gan CONFIG DATA.RANDOM_CROP 1.5             | DATA.RANDOM_CROP is 1.5, but should be in [0, 1]
train_gan CONFIG DATA.RANDOM_CROP 0.9             | DATA.RANDOM_CROP: digits holds images that are cropped already
train_gan CONFIG DATA.RANDOM_CROP 0.9 DATA.IN_MEMORY True | DATA.RANDOM_CROP needs whole images
train_gan CONFIG SOLVER.BATCH_SIZE 1000000000000  | SOLVER.BATCH_SIZE is 1,000,000,000,000, but should be at most
train_gan CONFIG MODEL.G_CH 1000000000            | MODEL.G_CH is 1,000,000,000, but should be at most 1,024
train_gan CONFIG SOLVER.BETAS "('a', 'b')"        | SOLVER.BETAS is ('a', 'b'), but should be two numbers
train_gan CONFIG DEVICE mps                       | DEVICE is mps, but PyTorch can't use it here: set DEVICE cpu
train_gan CONFIG TEST.TRUNCATE_BY clip            | TEST.TRUNCATE_BY is 'clip'; known are 'resample', 'scale'
train_gan CONFIG MODEL.D_32_ENDS_AT 16            | MODEL.D_32_ENDS_AT is 16; known are None, 4, 8
train_gan CONFIG TEST.EXTRACTOR resnet            | TEST.EXTRACTOR is 'resnet'; known are
train_gan CONFIG TEST.NUM_SAMPLES 3               | TEST.NUM_SAMPLES is 3, but IS takes 10 splits
train_gan CONFIG OUTPUT_DIR file                  | OUTPUT_DIR: [Errno 17] File exists: 'file'
train_gan CONFIG OUTPUT_DIR file/run              | OUTPUT_DIR: [Errno 20] Not a directory: 'file/run'
train_gan CONFIG OUTPUT_DIR ''                    | OUTPUT_DIR is empty: name the run's folder
train_gan CONFIG OUTPUT_DIR held                  | held holds a run (model_0000004.pth): continue it with --resume
train_gan CONFIG OUTPUT_DIR held --resume         | held/model_0000004.pth: damaged, or not a checkpoint
train_classifier CONFIG MODEL.NAME vgg            | MODEL.NAME is 'vgg'; known are preact_resnet8
train_classifier CONFIG MODEL.NORM 'x +'          | MODEL.NORM: "x +": the formula ends too early
train_classifier CONFIG MODEL.LINEAR IN           | linear='IN' should be "", affine, BN, GN, LN or a formula
train_classifier CONFIG MODEL.LINEAR 'mean_q(x)'  | unknown function 'mean_q' at character 1
train_classifier CONFIG MODEL.WIDTH -1.0          | MODEL.WIDTH is -1.0, but should be more than 0
train_classifier CONFIG SOLVER.EPOCHS 0           | SOLVER.EPOCHS is 0, but should be more than 0
train_classifier CONFIG SOLVER.IMS_PER_WORKER 1438 | is more than the 1437 images there are
train_classifier CONFIG SOLVER.SCHEDULE linear    | SOLVER.SCHEDULE is 'linear'; known are multistep, cosine
train_classifier CONFIG SOLVER.MOMENTUM 1.0       | SOLVER.MOMENTUM is 1.0, but should be in [0, 1)
train_classifier CONFIG SOLVER.LABEL_SMOOTHING 2. | SOLVER.LABEL_SMOOTHING is 2.0, but should be in [0, 1)
train_classifier CONFIG DATA.ROOT images          | DATA.ROOT is images, but DATA.NAME digits reads none
train_classifier CONFIG INPUT.AUGMENT autoaugment | INPUT.AUGMENT is for DATA.NAME folder and shards
train_classifier --config-file model.yaml         | Non-existent config key: MODEL.META_ARCHITECTURE: this tool has no key like it
train_classifier --config-file held               | held is a folder: name a config file in it
train_classifier CONFIG DATA.NAME folder DATA.ROOT absent | DATA.ROOT: there is no absent/train; it holds a folder per class
train_classifier CONFIG DATA.NAME folder DATA.ROOT images | DATA.ROOT: Found no valid file
train_classifier CONFIG DATA.NAME shards DATA.ROOT absent | DATA.ROOT: [Errno 2] No such file or directory: 'absent/classes.txt'
train_classifier CONFIG DATA.SHUFFLE 0            | DATA.SHUFFLE is 0, but should be more than 0
train_classifier CONFIG DATA.TRAIN_IMAGES -1      | DATA.TRAIN_IMAGES is -1, but should not be negative
train_classifier CONFIG OUTPUT_DIR file           | OUTPUT_DIR: [Errno 17] File exists: 'file'
train_net                                         | no config: name one with --config-file
train_net --config-file model.py                  | model.py: loading a LazyConfig runs its code
train_net CONFIG MODEL.RESNETS.NORM EvoNormS9     | MODEL.RESNETS.NORM: unknown norm-act 'EvoNormS9'
train_net CONFIG MODEL.FPN.NORM 'x * sgmoid(x)'   | did you mean 'sigmoid'?
train_net CONFIG MODEL.NORM EvoNormS0             | Non-existent key: MODEL.NORM
train_net CONFIG MODEL.EVONORM.LINEAR IN          | MODEL.EVONORM.LINEAR: linear='IN' should be
train_net CONFIG MODEL.META_ARCHITECTURE Nothing  | No object named 'Nothing' found in 'META_ARCH' registry
train_net CONFIG DATASETS.TEST digits_val         | which takes a tuple, such as ('digits_val',)
train_net CONFIG OUTPUT_DIR held --resume         | --resume stands among KEY VALUE: options come before them
train_net CONFIG MODEL.LOAD_PROPOSALS True        | MODEL.LOAD_PROPOSALS: proposal files are pickles
train_net CONFIG DATASETS.TRAIN "('none',)"         | no data set is named 'none'
train_net CONFIG DATASETS.TRAIN "('coco_2017_train',)" | coco/annotations/instances_train2017.json
train_net CONFIG DATASETS.TEST "('voc_2007_val',)"  | VOC2007/ImageSets/Main/val.txt
train_net CONFIG MODEL.WEIGHTS absent.pth         | absent.pth: there is no such checkpoint
train_net CONFIG MODEL.WEIGHTS text.pth           | text.pth: damaged, or not a checkpoint
train_net CONFIG MODEL.WEIGHTS empty.pth          | empty.pth: damaged, or not a checkpoint
train_net CONFIG MODEL.WEIGHTS cut.pth            | cut.pth: damaged
train_net CONFIG MODEL.WEIGHTS flipped.pth        | flipped.pth: damaged: its part
train_net CONFIG MODEL.WEIGHTS bomb.pth           | bomb.pth: loading it could run code, as it holds posix.mkdir
train_net CONFIG MODEL.WEIGHTS bomb.pkl           | bomb.pkl: loading it could run code, as it holds posix.mkdir
train_net CONFIG MODEL.WEIGHTS list.pth           | list.pth: not a checkpoint, which would be a dictionary
train_net CONFIG MODEL.DEVICE foo                 | MODEL.DEVICE
train_net CONFIG SOLVER.IMS_PER_BATCH 0           | SOLVER.IMS_PER_BATCH
train_net CONFIG DATALOADER.NUM_WORKERS -1        | DATALOADER.NUM_WORKERS
train_net CONFIG SOLVER.STEPS "('a',)"            | SOLVER.STEPS
train_net CONFIG MODEL.KEYPOINT_ON True           | KEYPOINT_ON
train_net CONFIG MODEL.ROI_HEADS.NUM_CLASSES 3    | NUM_CLASSES
train_net CONFIG MODEL.ROI_HEADS.NUM_CLASSES 80   | NUM_CLASSES
train_net CONFIG OUTPUT_DIR held                  | held holds a run (model_0000004.pth): continue it with --resume
train_net --eval-only CONFIG                      | --eval-only: nothing to evaluate
train_net --num-gpus 8 CONFIG                     | --num-gpus 8: PyTorch sees
train_net CONFIG INPUT.LSJ.ENABLED True INPUT.CROP.ENABLED True | both crop: enable only one of them
eval_gan absent                                   | absent: there is no such checkpoint or folder
eval_gan text.pth                                 | text.pth: damaged, or not a checkpoint
eval_gan bomb.pth                                 | bomb.pth: loading it could run code
eval_gan other.pth                                | other.pth: not a checkpoint of train_gan.py
eval_gan one                                      | --config-file is missing
eval_gan CONFIG texts                             | texts: no image (.png
eval_gan CONFIG floats.npz                        | arr_0 is float64 (4, 32, 32, 3), but should be uint8
eval_gan CONFIG two.npz                           | two.npz: holds a, b, but no array arr_0 or images
eval_gan CONFIG text.npz                          | text.npz: not an .npz, or damaged
eval_gan --table one                              | one: not the folder of a run, as it has no config.yaml
sample_gan grid absent -o a.png                   | absent: there is no such checkpoint or folder
sample_gan grid other.pth -o a.png                | other.pth: not a checkpoint of train_gan.py
sample_gan grid held -o a.png                     | held/model_0000004.pth: damaged, or not a checkpoint
sample_gan grid held -o a.gif                     | a.gif: the name should end in .png
sample_gan grid held -o file                      | file: exists already
export_backbone empty                             | empty: not a run of train_classifier.py
import_biggan absent.bin -o new.pth               | No such file or directory: 'absent.bin'
import_biggan bomb.pth -o new.pth                 | bomb.pth: loading it could run code
import_biggan list.pth -o new.pth                 | list.pth: not a checkpoint
import_biggan other.pth -o file                   | file exists: name another file by -o
pack_images absent a.zip --resolution 32          | No such file or directory: 'absent'
pack_images texts a.zip --resolution 32 --workers 100000 | --workers must be from 0 to 256, got 100000
pack_images texts a.zip --resolution 32           | Couldn't find any class folder in texts
report absent                                     | absent does not exist: name the folders of runs
report empty                                      | no runs found in empty
report file                                       | file is not a folder
reproduce table3 --norms EvoNormS9                | --norms: unknown norm-act 'EvoNormS9'
reproduce table3 --seeds 0                        | --seeds must be at least 1
reproduce table3 --out file                       | --out: [Errno 17] File exists
plot_norms layers EvoNormS9 -o a.svg              | unknown norm-act 'EvoNormS9'
plot_norms small-batch text.json -o a.svg         | text.json: not what reproduce.py table3 writes
plot_norms batch -o nowhere/a.svg                 | nowhere/a.svg: there is no folder nowhere
plot_benchmark list.json -o a.png                 | list.json: not a result of benchmark_layers.py --json
benchmark_layers --norms 'x /'                    | "x /": the formula ends too early
benchmark_training --model vgg                    | --model: 'vgg' is not known
visualize absent                                  | absent
visualize empty                                   | empty
make_digits --out file                            | file exists and is not the digits data set
analyze_model CONFIG MODEL.RESNETS.NORM EvoNormS9 | unknown norm-act 'EvoNormS9'
"""  # noqa: E501 - a table


def rows(text):
    return [
        tuple(part.strip() for part in line.split(" | ", 1)) for line in text.split("\n") if line
    ]


FILES = [
    (f"{tool} --config-file {file}", line)
    for tool in ("train_gan", "train_classifier", "train_net")
    for file, line in rows(CONFIG_FILES)
]


@pytest.mark.parametrize("command, line", [*FILES, *rows(TABLE)])
def test_it_is_one_line(type_in, tmp_path, command, line):
    tool = command.split()[0]
    command = command.replace("CONFIG", f"--config-file {RECIPES.get(tool)}", 1)
    if tool.startswith("train_") and "--config-file" in command and "OUTPUT_DIR" not in command:
        command += f" OUTPUT_DIR {tmp_path / 'run'}"
    status, out, err = type_in(command)
    last = err.splitlines()[-1]
    assert status == 2 and "Traceback" not in out + err
    assert last.startswith(f"{tool}.py: ") and line in last
    if tool != "train_net":  # Detectron2's log is on stderr, too
        assert len(err.splitlines()) == 1
