"""Codes of backends, files and commands: A5 and A6."""

from __future__ import annotations

from archir.codes.record import Code

CODES: dict[str, Code] = {
    "A501": Code(
        "operator not supported by the backend",
        "The backend has no lowering for this operator; the message gives the reason. Another "
        "backend may run the network, or a rewrite may replace the operator.",
    ),
    "A502": Code(
        "the backend cannot run this use",
        "The backend knows the operator but not with these attributes, or it cannot hold a layer, "
        "tensor, input or output of this name. The message says what stands in the way.",
    ),
    "A503": Code(
        "backend not available",
        "There is no backend of that name, or a package that it needs is not installed. The core "
        "of archir needs neither torch nor onnx; `pip install 'archir[torch]'` and "
        "`pip install 'archir[onnx]'` bring them.",
    ),
    "A504": Code(
        "two backends of one name",
        "Two installed packages offer a backend under the same name, or a lowering of the same "
        "operator for one backend, so that it is not clear which is meant. Uninstall one of them.",
    ),
    "A505": Code(
        "opset not available",
        "ONNX files are written for opset 17 up to the newest that the installed onnx and ONNX "
        "Runtime both accept, and with an IR version that allows the opset.",
    ),
    "A506": Code(
        "the exported file does not compute what the network computes",
        "Before an exported file is put in place it is run and compared with the network. The "
        "outputs differ by more than the stated bound, or are not finite; nothing was written. "
        "Both were then run layer by layer: the message names the first layer that differs, how "
        "far its value is off, and how far its operands were. A small drift before it and a large "
        "one at it points to the lowering of that layer, or to a kernel of ONNX Runtime.",
    ),
    "A507": Code(
        "the exported file cannot be run",
        "The ONNX checker or ONNX Runtime refuses the file, often for an element type that it has "
        "no kernel for. Nothing was written.",
    ),
    "A508": Code(
        "device not available",
        "A device was asked for explicitly and the backend cannot use it here. `auto` takes what "
        "there is.",
    ),
    "A510": Code(
        "an operator that torch alone runs",
        "An operator `aten.NAME` is carried from the network's source, and nothing but torch can "
        "compute it: not NumPy, not exact numbers. Rewrites work in all parts of the network whose "
        "check need not compute it.",
    ),
    "A511": Code(
        "torch has no such operator",
        "The text uses `aten.NAME` with an overload that the installed torch does not have.",
    ),
    "A512": Code(
        "an operator of torch that is not run",
        "Of torch's operators archir runs those that compute tensors from tensors and numbers: no "
        "random numbers, no files, nothing that writes to its operands or depends on how they lie "
        "in memory.",
    ),
    "A513": Code(
        "a carried operator does not fit its operands",
        "torch refuses the call that the text states, or gives results of other types.",
    ),
    "A520": Code(
        "no such source",
        "A network is imported from torchvision:NAME[@WEIGHTS], timm:NAME[@TAG], file.py:factory, "
        "net.pt2 or net.onnx; the message says what is not known.",
    ),
    "A521": Code(
        "a module that cannot be captured",
        "torch.export follows a module's code with a symbolic batch. Code that looks at the values "
        "of tensors, or at the size of the batch, has no single program; the message names the "
        "line.",
    ),
    "A522": Code(
        "a program that cannot be raised",
        "The captured program uses an operator of torch in a way that archir has no words for. The "
        "message names the call, the module that makes it and the line of its code.",
    ),
    "A523": Code(
        "an import that is not exact",
        "An imported network must give the very same numbers as its source in eval mode, on the "
        "CPU, in float32. This one does not, so it is not written.",
    ),
    "A524": Code(
        "auxiliary heads",
        "The network has outputs in training that it has not in eval mode. `--aux` keeps them as "
        "outputs in both modes, `--aux drop` leaves them out.",
    ),
    "A525": Code(
        "a Python file that gives no module",
        "`file.py:factory` runs the file and calls the function without arguments; it returns a "
        "torch.nn.Module, or a module and an example input.",
    ),
    "A526": Code(
        "no exported program",
        "A .pt2 file is what torch.export.save writes: a zip archive with a program in it. Pickles "
        "are not read.",
    ),
    "A527": Code(
        "weights that cannot be fetched",
        "Trained weights of torchvision and timm are downloaded by these packages, which failed.",
    ),
    "A530": Code(
        "no whole ONNX file",
        "The file is of another kind, empty, cut short or damaged, or a name in it is not UTF-8.",
    ),
    "A531": Code(
        "the ONNX file is wrong",
        "The graph breaks a rule of ONNX: a name is made twice or never, nodes form a cycle, an "
        "attribute is missing or of the wrong type, a tensor holds other than it declares. The "
        "message names the node.",
    ),
    "A532": Code(
        "external data that is not read",
        "Weights outside the model file are read from the model's own folder alone: no absolute "
        "path, no `..`, no link that leads out. The file must be there and hold what is declared.",
    ),
    "A533": Code(
        "the ONNX file is too large",
        "Files are not trusted: there are limits on fields, nodes, levels, the elements of a "
        "tensor, the weights that a small file may make, and on what a comparison may cost.",
    ),
    "A534": Code(
        "version of ONNX not read",
        "Opsets from 7 to the newest of the installed onnx are read. onnx.version_converter "
        "converts files of other opsets.",
    ),
    "A535": Code(
        "operators without a counterpart",
        "archir has no operator for these, and no composition that computes the same: loops, "
        "recurrent layers, quantised numbers, other domains. The message lists all of them.",
    ),
    "A536": Code(
        "a node that cannot be raised",
        "archir knows the operator but not this use of it: an attribute, an element type, a shape "
        "that depends on computed values. All such nodes are listed.",
    ),
    "A537": Code(
        "nothing to compare an import with",
        "An import is checked by running the ONNX file and the network side by side. ONNX Runtime "
        "cannot run the file, or torch not the network.",
    ),
    "A538": Code(
        "the imported network computes something else",
        "ONNX Runtime on the file and the raised network differ by more than the stated bound, so "
        "nothing was imported. That is a fault of archir: please report it with the file.",
    ),
    "A545": Code(
        "no such execution provider",
        "`--provider` takes `auto`, `cpu`, `cuda` and the other execution providers that ONNX "
        "Runtime knows, by their short names; the hint lists them.",
    ),
    "A546": Code(
        "not everything ran on the provider that was asked for",
        "With `--strict-provider` a file is put in place only if all of its nodes ran on the "
        "provider that `--provider` names. Without it they may fall back to the CPU, and the "
        "report says which did. Shape arithmetic often runs on the CPU beside a GPU.",
    ),
    "A547": Code(
        "the network's own outputs are not finite",
        "A file is compared with its network on random inputs. Where the network itself gives NaN "
        "or infinities there is nothing to compare with. The message names a weight that is NaN, "
        "or the first layer whose value is not finite. Nothing was written.",
    ),
    "A548": Code(
        "the network cannot have this batch",
        "`--batches` names batch sizes that the network does not allow: its batch is a fixed "
        "number, or other sizes are quotients of it and would not be whole.",
    ),
    "A549": Code(
        "no such layer to keep in float32",
        "`--keep` takes the path of a node, of a block, or a glob, and this one fits nothing.",
    ),
    "A550": Code(
        "float16 is too coarse for the network",
        "With `--precision fp16` the network is also run with every value that the file holds in "
        "float16 rounded to it, as a GPU computes; ONNX Runtime's CPU computes most operators in "
        "float32 and does not show it. The outputs differ by more than the stated bound, or a "
        "value is beyond float16's 65,504. `--keep PATH` leaves layers in float32.",
    ),
    "A560": Code(
        "the written file does not compute what the network computes",
        "A file that `archir export --format torch` writes is run in a process of its own before "
        "it is put in place. Its outputs, its state_dict keys or its running statistics are not "
        "those of the network, bit for bit. That is a fault of archir; nothing was written.",
    ),
    "A561": Code(
        "the written file cannot be run by itself",
        "A file that `archir export --format torch` writes must run where torch alone is "
        "installed, and load its weights there. It does not, for the reason in the message.",
    ),
    "A562": Code(
        "a layer that cannot be written into a file",
        "`archir export --format torch` writes what torch's own layers and functions do, and takes "
        "archir's few along as source. A layer or function of another package, or one whose "
        "source needs its module, cannot go along.",
    ),
    "A563": Code(
        "nothing that can be timed",
        "`archir bench` takes networks' texts (.arch), which run in torch, and ONNX files (.onnx), "
        "which run in ONNX Runtime.",
    ),
    "A564": Code(
        "an ONNX file that does not take such inputs",
        "`archir bench` makes random inputs from what an ONNX file says of them: the first axis is "
        "the batch, all other sizes must be numbers.",
    ),
    "A565": Code(
        "the process of a network ended",
        "`archir bench` runs each network in a process of its own. The framework failed there, or "
        "the process came to an end, perhaps for want of memory.",
    ),
    "A600": Code(
        "the network has no weights",
        "The command computes with weights, and there are none beside the text. `archir train` and "
        "`archir weights init` make some; `--init SEED` takes random ones.",
    ),
    "A601": Code(
        "file cannot be read",
        "The file does not exist, is a folder, or may not be read.",
    ),
    "A602": Code(
        "file cannot be written",
        "The folder does not exist or may not be written to, the disk is full, or the target is no "
        "regular file. What stood there before is unchanged.",
    ),
    "A603": Code(
        "file exists already",
        "Output never replaces an existing file unless `--force` is given.",
    ),
    "A604": Code("unknown rule", "No installed package and no given file has a rule of that name."),
    "A605": Code(
        "no such site",
        "A site is the path of a node, an ending of it that fits one node, or a block that holds "
        "one site; for a rule over a class `PATH.out` and `PATH.in` too. `archir rules FILE` lists "
        "them. `archir show FILE --at` takes the path of any block or layer.",
    ),
    "A606": Code(
        "several sites",
        "The rule applies at several places. `--at` takes one of them, a glob, `all`, or `random` "
        "with `--seed`.",
    ),
    "A607": Code("rule file cannot be read", "The file does not exist or is not UTF-8 text."),
    "A608": Code(
        "wrong parameters for a rule",
        "`--set NAME=VALUE` names a parameter that the rule does not have, or one that it needs is "
        "not given.",
    ),
    "A609": Code(
        "wrong use of a command",
        "An option is missing, malformed, or excludes another. `--help` shows an example.",
    ),
    "A610": Code(
        "no whole safetensors file",
        "Weights are read from safetensors files. The file is of another kind, cut short, or "
        "damaged; checkpoints of other kinds come in through `archir import`.",
    ),
    "A611": Code(
        "weights and network have different parameters",
        "The weights must hold exactly the parameters of the network, under their paths.",
    ),
    "A612": Code(
        "a tensor does not fit its parameter",
        "Shape and element type of each tensor must be those of the parameter.",
    ),
    "A613": Code(
        "element type not supported",
        "Weights are f32, f16, bf16, f64, i64, i32 or bool; bf16 needs the package ml_dtypes.",
    ),
    "A620": Code(
        "no such data",
        "Data is `digits`, `cifar10`, `cifar100`, `svhn`, `mnist` or `fashion_mnist`, a folder, "
        "FILE.npz or FILE.py:FACTORY.",
    ),
    "A621": Code(
        "malformed data",
        "The data cannot be read, or its arrays do not belong together: images are floats or bytes "
        "[N, ...], labels are integers [N] from 0, and no value is infinite or not a number.",
    ),
    "A622": Code(
        "a package is missing",
        "The command needs an optional package; the hint says how to install it.",
    ),
    "A623": Code(
        "network and data do not fit",
        "The network's input has not the shape of an image, or its output not one logit per class. "
        "The message shows both sides; `--param` sets what an arch leaves open.",
    ),
    "A624": Code(
        "the data factory failed",
        "FILE.py:FACTORY names a function of no arguments that returns a mapping with x_train, "
        "y_train, x_test, y_test (or x, y) or an archir Dataset. Its code runs as it is.",
    ),
    "A625": Code(
        "not trainable as a classifier",
        "Training and evaluation take networks with one input, one output of logits [N, classes], "
        "and at least one parameter.",
    ),
    "A626": Code(
        "a checkpoint that cannot be read",
        "`archir weights load` reads safetensors files and files of `torch.save`. The file is of "
        "another kind, cut short, damaged, or an archive that torch.save does not write.",
    ),
    "A627": Code(
        "a checkpoint with more than tensors in it",
        "A pickle may call any code. One that names more than tensors, mappings and numbers is "
        "refused before anything of it is run. Where you trust the file, load it with torch and "
        "save the state_dict alone.",
    ),
    "A628": Code(
        "which state dict is meant is not clear",
        "The file holds several mappings of tensors (a network and its running average, say), or "
        "none of the name that was given. `--entry NAME` takes one.",
    ),
    "A629": Code(
        "a key map that does not work",
        "A line of a key map is `REGEX=REPLACEMENT`: what the expression finds in a key is "
        "replaced. It is malformed, two keys become one, or the keys would fit behind several "
        "prefixes; `--map '^prefix\\.='` takes one away.",
    ),
    "A630": Code(
        "no such device",
        "A device that is named must be there: `cpu`, `cuda` or `cuda:i`. `auto` takes the first "
        "GPU, or the CPU.",
    ),
    "A631": Code(
        "training went astray",
        "The loss became infinite or not a number, so the weights are of no use. The learning rate "
        "may be too large, or the weights it started from not finite.",
    ),
    "A632": Code(
        "wrong training recipe",
        "An entry of the recipe (epochs, batch size, rate, ...) is out of its range.",
    ),
    "A633": Code(
        "the device has no memory left",
        "Images, network and activations did not fit into the memory of the device. A smaller "
        "batch needs less; `--device cpu` uses the machine's memory.",
    ),
    "A634": Code(
        "the checkpoint does not fit the network",
        "Tensors are missing, have no place, or are of another shape or element type. The report "
        "lists them side by side. `--map` renames keys, `--match shape` pairs what names do not, "
        "`--replace-head` and `--fresh` draw layers anew, `--ignore` leaves keys out, `--partial` "
        "takes what there is and draws the rest. Nothing was written; the exit status is 1.",
    ),
    "A635": Code(
        "positions that cannot be resampled",
        "`--interpolate` resamples a table of positions for another input size. That needs one "
        "axis that differs, which is a square grid on both sides, behind up to eight rows that "
        "stay as they are.",
    ),
    "A636": Code(
        "a value beyond the element type",
        "Floats are rounded to the element type of the network's parameter, whole numbers are "
        "kept; a value of the checkpoint is too large for it.",
    ),
    "A637": Code(
        "a run that cannot be resumed",
        "A file of the run folder is missing, damaged, of a newer archir or of another kind. What "
        "is whole stays as it is; `--force` starts the run anew.",
    ),
    "A638": Code(
        "another run's folder",
        "`--resume` goes on with the run that the folder holds, so network, weights, data and "
        "recipe must be those it was started with. The message names what differs.",
    ),
    "A639": Code(
        "processes that cannot be joined",
        "Under torchrun all processes meet before training. torch's own message says what failed: "
        "an address that is taken, a process that is missing, a backend that is not there.",
    ),
    "A640": Code(
        "operators of a package cannot be used",
        "An installed package offers operators that cannot be read, or one under a name that is "
        "taken. Uninstalling the package, or installing it again, may help.",
    ),
    "A641": Code(
        "picture too large",
        "A picture holds so many boxes or edges at most as can be read and laid out. `--depth N` "
        "draws the blocks below a level as one box each; without `--all` repeats are drawn once.",
    ),
    "A650": Code(
        "an optimizer whose state cannot be moved",
        "The state of torch.optim.SGD, Adam and AdamW moves through rewrites. Other optimizers "
        "would need gradient maps of their own.",
    ),
    "A651": Code(
        "an optimizer's state that does not belong to the network",
        "The state speaks of parameters that the network does not have, has other shapes, or was "
        "written beside other weights. An optimizer's state means nothing but with the very "
        "weights that it was accumulated at.",
    ),
    "A652": Code(
        "no optimizer's state",
        "There is no `.optim.safetensors` beside the network. `archir train --with-optimizer` "
        "writes one; without --with-optimizer a rewrite needs none.",
    ),
    "A653": Code(
        "a damaged optimizer's state",
        "The file is not what archir writes, or holds settings that torch refuses.",
    ),
    "A654": Code(
        "an optimizer's state that is not finite",
        "A slot of the optimizer holds NaN or infinity, so that training has gone astray. A "
        "rewrite would spread it.",
    ),
    "A655": Code(
        "another optimizer's state",
        "The moments of one optimizer mean nothing to another. The recipe's `optimizer` must be "
        "the one that the state was accumulated by.",
    ),
    "A660": Code(
        "data that is not here",
        "A published data set is looked for in the folder that ARCHIR_DATA names and in archir's "
        "cache. `--download` fetches it; nothing is fetched without it.",
    ),
    "A661": Code(
        "data that cannot be fetched",
        "There is no connection, the server does not answer, or what it sent is not the published "
        "file by its MD5. Nothing was put in place.",
    ),
    "A662": Code(
        "an image that cannot be decoded",
        "A file of a folder of images is damaged, no image, or so large, as it is or resized, "
        "that it would fill the memory.",
    ),
    "A663": Code(
        "a folder that is laid out otherwise",
        "A folder of images holds a folder for each class, or `train` and `val` or `test` that do "
        "and agree in their classes. One that holds several published sets does not say which.",
    ),
    "A664": Code(
        "the size of images is missing",
        "Images of a folder are resized to what the network takes: [N, 3, H, W], or [N, 1, H, W] "
        "for grey ones, with numbers for H and W. In Python `size` says it.",
    ),
    "A670": Code(
        "a glob that names nothing",
        "`freeze` and `rates` take globs over the paths of parameters and layers; one that "
        "matches none is a slip. `*` matches dots as well.",
    ),
    "A671": Code(
        "nothing is left to train",
        "The globs of `freeze` name every parameter of the network.",
    ),
    "A672": Code(
        "the loss factory failed",
        "FILE.py:FACTORY names a function of no arguments that returns a loss: a function of "
        "logits [N, C] and labels [N], or a module of torch. Its code runs as it is.",
    ),
    "A673": Code(
        "the loss failed",
        "A loss of one's own must return one number, a floating tensor [] that autograd can trace "
        "back to the logits.",
    ),
    "A674": Code(
        "images that cannot be augmented",
        "Flip, crop and cutout take images [C, H, W] that are larger than `crop` and not smaller "
        "than `cutout`.",
    ),
    "A675": Code(
        "torch cannot compile the network",
        "`compile` hands the network to torch.compile, which writes C++ for a CPU and needs a "
        "compiler for it. Without `compile` torch runs it as it is, with the same results up to "
        "rounding. The exit status is 3.",
    ),
    "A680": Code(
        "wrong timetable of growths",
        "`--grow FILE` is a TOML file of tables `[[grow]]`, each with `step` (from 0) or `epoch` "
        "(from 1), `rule` or `rules`, and, where wanted, `at`, `set` and `seed`: docs/growing.md.",
    ),
    "A681": Code(
        "a growth out of order, or beyond the run",
        "Growths stand in the order in which they come, and each comes before a step of the run. "
        "Steps are counted from 0, epochs from 1; the message says how many there are.",
    ),
    "A690": Code(
        "out of memory",
        "The machine has not the memory that the command needs. Nothing was left half written.",
    ),
    "A691": Code("the disk is full", "What stood at the target before is unchanged."),
    "A692": Code(
        "the system refused",
        "Reading or writing failed for the reason in the message.",
    ),
}
