"""The operators as Triton kernels, for GPUs without nvcc at installation and for AMD's; installed as
``flexkern.triton_kernels``.

One file for each family, under the names of ``flexkern/ops``. The functions take the arguments that
``flexkern/spec`` declares, and do what those of ``flexkern/reference`` do. With TRITON_INTERPRET=1, set before
the first import, they run on CPU tensors in Triton's interpreter.
"""
