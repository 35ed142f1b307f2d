"""The configurations of the kernels and the order of the backends, each with its reason.

Written by ``python scripts/tune.py --update``, which replaces the entries that it has measured and keeps the
others; it may be edited by hand too. tuning.py reads it. "cuda", "hip", "any": all GPUs of the kind that have
no entry of their own.
A reason that begins with "predicted" was found without a GPU: bytes, operations, and what the compiler says
of registers and shared memory (``python -m flexkern.triton_kernels.aot``). "measured" comes with its numbers.

rows and steps of adapters: see adapter_pass.py and adapter_bank.py; tiles of products: product.py; tiles and
words of the passes over synapses: memory.py. Up to which rank of an adapter a variant goes is in its name.
"""

# fmt: off
Configurations = dict[str, dict[str, dict[str, tuple[dict[str, int], str]]]]
Backends = dict[str, dict[str, tuple[tuple[str, ...], str]]]

CONFIGURATIONS: Configurations = {
    "linear": {
        "interpreter": {
            "any": ({"out": 64, "batch": 16, "group": 8, "num_warps": 1, "num_stages": 1},
                "small, for small tensors"),
        },
        "half": {
            "sm_90": ({"out": 128, "batch": 64, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: 115 registers stored, 128 procedural, 96 KB: two programs a multiprocessor, so "
                "that one reads its state while the other multiplies"),
            "cuda": ({"out": 128, "batch": 64, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: as sm_90; 96 KB also fit GPUs with 99 KB; compiled for sm_80 and sm_100 without "
                "spills"),
            "hip": ({"out": 128, "batch": 32, "group": 8, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-silent": {
            "sm_90": ({"out": 128, "batch": 64, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: as without silent synapses; 159 to 170 registers, so one program a multiprocessor"),
            "cuda": ({"out": 128, "batch": 64, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: as sm_90; 96 KB also fit GPUs with 99 KB; compiled for sm_80 and sm_100 without "
                "spills"),
            "hip": ({"out": 128, "batch": 32, "group": 8, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32": {
            "sm_90": ({"out": 128, "batch": 32, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: the bytes a step of 16-bit inputs; 116 registers stored, two programs a "
                "multiprocessor, 133 procedural, one"),
            "cuda": ({"out": 128, "batch": 32, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: as sm_90; 96 KB also fit GPUs with 99 KB; compiled for sm_80 and sm_100 without "
                "spills"),
            "hip": ({"out": 128, "batch": 16, "group": 8, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-silent": {
            "sm_90": ({"out": 128, "batch": 32, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: as without silent synapses; 169 to 214 registers, one program a multiprocessor"),
            "cuda": ({"out": 128, "batch": 32, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: as sm_90; 96 KB also fit GPUs with 99 KB; compiled for sm_80 and sm_100 without "
                "spills"),
            "hip": ({"out": 128, "batch": 16, "group": 8, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "ieee": {
            "sm_90": ({"out": 128, "batch": 16, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: 1024 FFMA a thread for 16 samples, so the product sets the pace; 64 rows or 16 "
                "warps use a stack"),
            "cuda": ({"out": 128, "batch": 16, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: 1024 FFMA a thread for 16 samples, so the product sets the pace; 64 rows or 16 "
                "warps use a stack"),
            "hip": ({"out": 128, "batch": 16, "group": 8, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "ieee-silent": {
            "sm_90": ({"out": 128, "batch": 16, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: 1024 FFMA a thread for 16 samples, so the product sets the pace; 64 rows or 16 "
                "warps use a stack"),
            "cuda": ({"out": 128, "batch": 16, "group": 8, "num_warps": 8, "num_stages": 3},
                "predicted: 1024 FFMA a thread for 16 samples, so the product sets the pace; 64 rows or 16 "
                "warps use a stack"),
            "hip": ({"out": 128, "batch": 16, "group": 8, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
    },
    "adapter forward": {
        "interpreter": {
            "any": ({"rows": 32, "step": 64, "num_warps": 1, "num_stages": 1},
                "small, for small tensors"),
        },
        "half-64": {
            "sm_90": ({"rows": 128, "step": 64, "num_warps": 8, "num_stages": 3, "maxnreg": 128},
                "predicted: 126 registers, two programs a multiprocessor; two steps of 16 KB under way; the "
                "bank read from L2 is 78 MB, half of what 64 rows would read"),
            "cuda": ({"rows": 128, "step": 64, "num_warps": 8, "num_stages": 3},
                "predicted: as sm_90, without the bound on registers, which spills elsewhere"),
            "hip": ({"rows": 64, "step": 64, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-128": {
            "cuda": ({"rows": 64, "step": 64, "num_warps": 8, "num_stages": 3},
                "predicted: the hidden units stay in registers"),
            "hip": ({"rows": 64, "step": 32, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-256": {
            "cuda": ({"rows": 64, "step": 32, "num_warps": 8, "num_stages": 3},
                "predicted: the hidden units stay in registers"),
            "hip": ({"rows": 64, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-512": {
            "cuda": ({"rows": 32, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: the hidden units stay in registers; three stages would not fit"),
            "hip": ({"rows": 32, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-64": {
            "cuda": ({"rows": 128, "step": 32, "num_warps": 8, "num_stages": 3},
                "predicted: as 16 bits, at half the step"),
            "hip": ({"rows": 64, "step": 32, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-128": {
            "cuda": ({"rows": 64, "step": 32, "num_warps": 8, "num_stages": 3},
                "predicted: the hidden units stay in registers"),
            "hip": ({"rows": 64, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-256": {
            "cuda": ({"rows": 64, "step": 16, "num_warps": 8, "num_stages": 3},
                "predicted: the hidden units stay in registers"),
            "hip": ({"rows": 64, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-512": {
            "cuda": ({"rows": 32, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: the hidden units stay in registers; three stages would not fit"),
            "hip": ({"rows": 32, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "ieee-64": {
            "any": ({"rows": 64, "step": 32, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-128": {
            "any": ({"rows": 32, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-256": {
            "any": ({"rows": 16, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-512": {
            "any": ({"rows": 16, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
    },
    "adapter backward": {
        "interpreter": {
            "any": ({"rows": 32, "step": 64, "num_warps": 1, "num_stages": 1},
                "small, for small tensors"),
        },
        "half-64": {
            "sm_90": ({"rows": 128, "step": 64, "num_warps": 8, "num_stages": 3, "maxnreg": 128},
                "predicted: as forward"),
            "cuda": ({"rows": 128, "step": 64, "num_warps": 8, "num_stages": 3},
                "predicted: as sm_90, without the bound on registers, which spills elsewhere"),
            "hip": ({"rows": 64, "step": 64, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-128": {
            "cuda": ({"rows": 64, "step": 64, "num_warps": 8, "num_stages": 3},
                "predicted: the hidden units stay in registers"),
            "hip": ({"rows": 64, "step": 32, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-256": {
            "cuda": ({"rows": 64, "step": 32, "num_warps": 8, "num_stages": 3},
                "predicted: the hidden units stay in registers"),
            "hip": ({"rows": 64, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-512": {
            "cuda": ({"rows": 32, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: the hidden units stay in registers; three stages would not fit"),
            "hip": ({"rows": 32, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-64": {
            "cuda": ({"rows": 128, "step": 32, "num_warps": 8, "num_stages": 3},
                "predicted: as 16 bits, at half the step"),
            "hip": ({"rows": 64, "step": 32, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-128": {
            "cuda": ({"rows": 64, "step": 32, "num_warps": 8, "num_stages": 3},
                "predicted: the hidden units stay in registers"),
            "hip": ({"rows": 64, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-256": {
            "cuda": ({"rows": 64, "step": 16, "num_warps": 8, "num_stages": 3},
                "predicted: the hidden units stay in registers"),
            "hip": ({"rows": 64, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-512": {
            "cuda": ({"rows": 32, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: the hidden units stay in registers; three stages would not fit"),
            "hip": ({"rows": 32, "step": 16, "num_warps": 4, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "ieee-64": {
            "any": ({"rows": 64, "step": 32, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-128": {
            "any": ({"rows": 32, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-256": {
            "any": ({"rows": 16, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-512": {
            "any": ({"rows": 16, "step": 16, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
    },
    "adapter bank": {
        "interpreter": {
            "any": ({"rows": 32, "columns": 64, "programs": 512, "num_warps": 1, "num_stages": 1},
                "small, for small tensors"),
        },
        "half-64": {
            "sm_90": (
                {"rows": 64, "columns": 128, "programs": 512, "num_warps": 8, "num_stages": 5, "maxnreg": 128},
                "predicted: two programs a multiprocessor, two steps of 24 KB under way each; 122 registers "
                "from Triton 3.9, and 128 in place of 147 from Triton 3.6, without a spill"),
            "cuda": ({"rows": 64, "columns": 128, "programs": 512, "num_warps": 8, "num_stages": 5},
                "predicted: as sm_90, without the bound on registers, which has been tried there only"),
            "hip": ({"rows": 32, "columns": 128, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-128": {
            "cuda": ({"rows": 32, "columns": 64, "programs": 512, "num_warps": 8, "num_stages": 5},
                "predicted: as 16 bits at rank 64, with the sums in registers"),
            "hip": ({"rows": 32, "columns": 64, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-256": {
            "cuda": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 5},
                "predicted: as 16 bits at rank 64, with the sums in registers"),
            "hip": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "half-512": {
            "cuda": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 5},
                "predicted: as 16 bits at rank 64, with the sums in registers"),
            "hip": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-64": {
            "cuda": ({"rows": 32, "columns": 64, "programs": 512, "num_warps": 8, "num_stages": 5},
                "predicted: as 16 bits at rank 64, with the sums in registers"),
            "hip": ({"rows": 32, "columns": 64, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-128": {
            "cuda": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 5},
                "predicted: as 16 bits at rank 64, with the sums in registers"),
            "hip": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-256": {
            "cuda": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 5},
                "predicted: as 16 bits at rank 64, with the sums in registers"),
            "hip": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "tf32-512": {
            "cuda": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 5},
                "predicted: as 16 bits at rank 64, with the sums in registers"),
            "hip": ({"rows": 32, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: two steps fit 64 KB of shared memory"),
        },
        "ieee-64": {
            "any": ({"rows": 16, "columns": 64, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-128": {
            "any": ({"rows": 16, "columns": 32, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-256": {
            "any": ({"rows": 16, "columns": 16, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
        "ieee-512": {
            "any": ({"rows": 16, "columns": 16, "programs": 512, "num_warps": 8, "num_stages": 2},
                "predicted: no tensor cores, so the products set the pace"),
        },
    },
    "sgd": {
        "stored": {
            "any": ({"tile": 1024, "num_warps": 4},
                "predicted: 8 elements a thread are 128 bytes in flight, and 210 threads a multiprocessor "
                "cover 800 ns at 4.3 TB/s; 56 registers"),
        },
        "mixed": {
            "any": ({"tile": 1024, "num_warps": 4},
                "predicted: as stored; both sources' code costs registers, not loads"),
        },
        "held": {
            "any": ({"tile": 1024, "num_warps": 4},
                "predicted: 8 elements a thread are 128 bytes in flight, and 210 threads a multiprocessor "
                "cover 800 ns at 4.3 TB/s"),
        },
    },
    "gate": {
        "stored": {
            "any": ({"tile": 1024, "num_warps": 4},
                "predicted: as the step"),
        },
        "mixed": {
            "any": ({"tile": 1024, "num_warps": 4},
                "predicted: as the step"),
        },
    },
    "fill": {
        "any": {
            "any": ({"tile": 1024, "num_warps": 4},
                "predicted: bound by arithmetic; as the step"),
        },
    },
    "synapse": {
        "stored": {
            "any": ({"words": 32, "num_warps": 4},
                "predicted: 1024 synapses, 8 a thread, as the step"),
        },
        "mixed": {
            "any": ({"words": 32, "num_warps": 4},
                "predicted: 1024 synapses, 8 a thread, as the step"),
        },
        "held": {
            "any": ({"words": 32, "num_warps": 4},
                "predicted: 1024 synapses, 8 a thread, as the step"),
        },
    },
}

BACKENDS: Backends = {
    "metaplastic_sgd_": {
        "cuda": (("cuda", "triton",),
            "predicted: the compiled kernels step a whole list from their arguments, with no table to "
            "copy"),
        "hip": (("triton",),
            "there is no HIP C++ build"),
    },
    "gated_sgd_": {
        "cuda": (("cuda", "triton",),
            "predicted: the compiled kernels step a whole list from their arguments, with no table to "
            "copy"),
        "hip": (("triton",),
            "there is no HIP C++ build"),
    },
    "synapse_step_": {
        "cuda": (("cuda", "triton",),
            "predicted: 64 registers or less and no groups of four: a silent neighbour is not accessed"),
        "hip": (("triton",),
            "there is no HIP C++ build"),
    },
    "metaplastic_gate": {
        "cuda": (("cuda", "triton",),
            "predicted: alike"),
        "hip": (("triton",),
            "there is no HIP C++ build"),
    },
    "materialize": {
        "cuda": (("cuda", "triton",),
            "predicted: the tail of the normal quantile only where a warp needs it"),
        "hip": (("triton",),
            "there is no HIP C++ build"),
    },
    "pack_mask": {
        "cuda": (("cuda", "triton",),
            "predicted: alike"),
        "hip": (("triton",),
            "there is no HIP C++ build"),
    },
    "unpack_mask": {
        "cuda": (("cuda", "triton",),
            "predicted: alike"),
        "hip": (("triton",),
            "there is no HIP C++ build"),
    },
    "other": {
        "cuda": (("cuda", "triton",),
            "the others have one GPU backend, Triton"),
        "hip": (("triton",),
            "there is no HIP C++ build"),
    },
}
