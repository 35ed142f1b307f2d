"""The operators as Triton kernels, for GPUs without nvcc at installation and for AMD's; installed as
``flexkern.triton_kernels``.

One file an op family, under the names of ``flexkern/ops``. The functions have the argument lists of the
dispatcher entries there, and the semantics of ``flexkern/reference.py``. With TRITON_INTERPRET=1, set before
the first import, they run on CPU tensors in Triton's interpreter.
"""
