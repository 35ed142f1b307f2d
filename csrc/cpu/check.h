// Refusals: flexkern.ops.operator tells them from faults by their first words.
#pragma once

#include <torch/headeronly/util/Exception.h>

#define FLEXKERN_CHECK(condition, ...) STD_TORCH_CHECK(condition, "flexkern refuses: ", __VA_ARGS__)
