"""Codes of searches: A7."""

from __future__ import annotations

from archir.codes.record import Code

CODES: dict[str, Code] = {
    "A700": Code(
        "the journal of a search is damaged",
        "The journal is only ever appended to, one JSON object a line; a line that was cut off at "
        "its end is dropped. Anything else was changed by others: begin anew with --force, or "
        "restore the file.",
    ),
    "A701": Code(
        "a resumed search does not repeat its journal",
        "A search is resumed by running it again; what it does has to be what its journal says, "
        "up to the end of the journal. Another version of archir or of a package that draws, or a "
        "member that was changed, makes it do something else.",
    ),
    "A702": Code(
        "the folder holds another search",
        "Network, data, seed, settings, limits, threads and kind of device belong to what a "
        "search is. The message says which of them differ.",
    ),
    "A703": Code(
        "no search in the folder, or its files are gone",
        "A run folder holds search.json, journal.jsonl and the members; see docs/search.md.",
    ),
    "A704": Code(
        "another process searches in the folder",
        "A run folder belongs to one process at a time. Wait for it, or take another folder.",
    ),
    "A705": Code(
        "no network was scored",
        "All candidates were refused or failed: the hint names the first reason. Looser limits or "
        "other moves may help.",
    ),
    "A710": Code(
        "the data of a search have changed",
        "A search loads its data again in each of its processes, and when it is resumed: they must "
        "have the hash that they had when it began.",
    ),
    "A711": Code(
        "the evaluation failed",
        "An evaluator raised an error that is none of archir's. The member is recorded as failed, "
        "with the error's text, and the search goes on.",
    ),
    "A712": Code(
        "a process of the search ended",
        "The process of an evaluation came to an end by itself: signal 9 is often want of memory. "
        "The evaluation is tried once more by itself, then recorded as failed. A process that ends "
        "before it has begun, or an evaluator that cannot be sent to one, ends the search.",
    ),
    "A713": Code(
        "wrong limit",
        "Limits of a search are whole numbers of at least 1 (parameters, MACs, evaluations), or "
        "seconds greater than 0 (latency, time).",
    ),
    "A714": Code(
        "no score",
        "An evaluator gives finite numbers by name, `score` among them, and a history of JSON "
        "values. The member is recorded as failed.",
    ),
    "A715": Code(
        "a setting of a search that is wrong",
        "`archir search` reads the entries of docs/search.md, those of the strategy in a table of "
        "its name (or by --set), those of an evaluator in one of its name. The message names the "
        "entry, and what it should be.",
    ),
    "A716": Code(
        "no such strategy or evaluator",
        "Strategies come from installed packages (the entry points `archir.strategies`) or as "
        "FILE.py:NAME, which names an archir.search.parts.Kind; evaluators have names of their "
        "own, or are FILE.py:NAME of a dataclass.",
    ),
    "A720": Code(
        "wrong moves of a search",
        "A settings file states moves in tables `[[moves]]`: `rule`, and where wanted `family`, "
        "`arguments` (choices by parameter), `times` (factors of a class's size), `levels` (sizes, "
        "of which the next larger one is taken), `most` and `tensors`: docs/search.md.",
    ),
    "A721": Code(
        "wrong settings of NASH",
        "The message names the entry of `[nash]` or `[random]` and its range: docs/search.md.",
    ),
    "A722": Code(
        "a search without a score",
        "The start network could not be evaluated, so that there is nothing to begin from. The "
        "message says what became of it.",
    ),
    "A723": Code(
        "an ensemble over different images",
        "Networks that take images of different sizes are averaged over the same images, read in "
        "each size. Here the labels differ, so that these are other images.",
    ),
    "A730": Code(
        "no last linear layer",
        "Random-weight evaluation trains the linear layer that makes the network's output, and no "
        "other layer. It takes networks whose one output [N, classes] is made by `linear`.",
    ),
    "A731": Code(
        "scores that cannot be ranked",
        "Rank correlation takes equally many scores and true values, three at least, all of them "
        "finite, and at least two different ones on each side.",
    ),
    "A732": Code(
        "not a cell of NAS-Bench-201",
        "A cell is six operations, in the order of the edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3: "
        "none, skip_connect, nor_conv_1x1, nor_conv_3x3 or avg_pool_3x3.",
    ),
    "A733": Code(
        "wrong setting of an evaluator",
        "A setting is of another kind, or out of the range that the message names.",
    ),
    "A734": Code(
        "numbers that are not finite",
        "With random weights the network's numbers grow beyond what floats hold, which happens in "
        "deep networks without normalisation. It has no such score.",
    ),
    "A735": Code(
        "nothing to score",
        "The network has no layer that the score looks at: nwot wants rectifiers (relu and its "
        "like), synflow, snip and grad_norm convolutions or linear layers.",
    ),
    "A740": Code(
        "pymoo is missing or broken",
        "The strategy `rwe` is NSGA-II as pymoo has it: `pip install 'archir[search]'`. The exit "
        "status is 3.",
    ),
    "A741": Code(
        "no such encoding",
        "The encodings of networks as integers are nsga_micro, nsga_macro and nasbench201.",
    ),
    "A742": Code(
        "not a genome",
        "A genome has as many integers as its encoding says, each within its bounds.",
    ),
    "A743": Code(
        "an encoding makes no network of this size",
        "NSGA-Net's cells halve an image twice and split channels in two: the sides are to be "
        "multiples of 4 and channels even. Images are [C, H, W].",
    ),
    "A744": Code(
        "wrong settings of the strategy rwe",
        "The message names the entry, its kind and its range.",
    ),
    "A745": Code(
        "nothing to choose from",
        "No network of the first generation was scored, or none of the front's could be trained; "
        "the message has the reason of the first. Every one is in the journal with its own.",
    ),
    "A746": Code(
        "moves for genomes",
        "Moves mutate networks where the encoding is `rules`; genomes are mutated as integers.",
    ),
    "A750": Code(
        "a report of a damaged journal",
        "The journal of the run was changed by others than archir; the message names the line. A "
        "last line that was cut off is not counted: it belongs to a search that was interrupted.",
    ),
    "A751": Code(
        "a report of no run",
        "`archir report` takes the run folder of a search, which holds `journal.jsonl`: what "
        "`archir search --run` named.",
    ),
    "A752": Code(
        "what a report needs is not installed",
        "The page is made with jinja2, its axes with matplotlib: `pip install 'archir[search]'`. "
        "The exit status is 3.",
    ),
    "A761": Code(
        "a network that is not of EAS's space",
        "EAS grows plain networks (a chain of convolutions, pools and linear layers, each but the "
        'last with a ReLU), or DenseNets with bottlenecks (`space = "dense"`). The message says '
        "what does not fit.",
    ),
    "A762": Code(
        "a network that EAS's policy cannot read",
        "The policy reads layers as words: widths and kernels are those of the entries `filters`, "
        "`units`, `kernels` and `growths`, and there are at most 50 layers and 5 blocks of 10 "
        "(DenseNets: 62, and 3 of 20). Other levels can be set, or the layer widened to one.",
    ),
    "A763": Code(
        "wrong settings of EAS",
        "The message names the entry of `[eas]` or `[eas_random]` and its range: docs/search.md.",
    ),
    "A764": Code(
        "a network that cannot grow",
        "All layers have the largest width of the space, or `n_wider` is 0, and no layer can be "
        "inserted, or `n_deeper` is 0.",
    ),
    "A770": Code(
        "no cells of NAT",
        "`archir new nat_darts` and its like make the cells that NAT starts from. A cell has two "
        "inputs, each other node two edges from earlier nodes, and halves the image on all edges "
        "from its inputs or on none; a pooling of 2 x 2 halves it always. Genomes have the "
        "operations of NAT++.",
    ),
    "A771": Code(
        "no transition of NAT",
        "An operation may become a cheaper one, a skip or nothing (`archir.search.cells.targets`): "
        "a skip that halves the image is two convolutions, so that nothing may become one.",
    ),
    "A772": Code(
        "a policy of NAT that changes nothing",
        "Every operation of the network's cells is the policy's most likely choice, or what was "
        "drawn, already; nothing is written. The exit status is 1.",
    ),
    "A773": Code(
        "a policy of NAT that lets nothing through",
        "With the operations that it chooses a cell would hand on zeros alone, whatever the image; "
        "nothing is written. The exit status is 1.",
    ),
    "A775": Code(
        "no policy of NAT",
        "A policy is the safetensors file that `archir search --strategy nat` leaves in its run "
        "folder: its tensors have the shapes that belong together, its numbers are finite, and it "
        "knows the operations of this version of archir.",
    ),
    "A776": Code(
        "no supernet",
        "The shared weights that NAT's samples are scored with are the file that the training of "
        "its policy left in the run folder; it was changed since.",
    ),
    "A777": Code(
        "a network without cells",
        "NAT changes operations on edges: convolutions, separable and dilated ones, poolings, "
        "skips, as rewrites/nat.rule reads them. The network has none that could change.",
    ),
    "A778": Code(
        "wrong settings of NAT",
        "The message names the entry of `[nat]` and its range: docs/search.md. NAT takes no moves.",
    ),
    "A779": Code(
        "dearer than the input",
        "What a policy makes of a network has neither more MACs nor more parameters than that.",
    ),
    "A780": Code(
        "Ray is not installed",
        "`--executor ray` evaluates on Ray: `pip install 'archir[cluster]'`, on every machine. The "
        "exit status is 3.",
    ),
    "A781": Code(
        "there is no Ray, or it is gone",
        "`--address` names a Ray that runs: `ray start --head` on one machine, `ray start "
        "--address=HOST:PORT` on others, one of which is this one. Where the connection is lost in "
        "the midst of a search, `--resume` goes on with it.",
    ),
    "A782": Code(
        "other versions on other machines",
        "All machines of a Ray have the same versions of Python and ray, and of archir, torch and "
        "numpy, since results depend on them. The message names what differs.",
    ),
    "A783": Code(
        "no machine that is large enough",
        "An evaluation takes as many CPUs as `threads` says, and where the device is no CPU the "
        "share of a GPU that `gpus` says. No machine of the Ray has these, or none is left; "
        "`--resume` goes on when there is one.",
    ),
    "A784": Code(
        "settings that Ray cannot have",
        "Ray chooses the GPU of an evaluation, so that the device is `auto`, `cpu` or `cuda`. An "
        "address is HOST:PORT or `auto`, and goes with `--executor ray`; those of Ray's client "
        "(ray://) are not.",
    ),
}
