// From bytes of a safetensors file to tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include "checkpoint/safetensors.h"

namespace tabes::checkpoint {

// Fills `destination` with the data of `tensor`, whose shape it must have. A contiguous CPU
// destination of the same dtype receives the bytes straight from the file; every other (another
// floating dtype, a strided view, a GPU) through a buffer of a few rows. Throws CheckpointError if
// the shapes differ, the conversion would not be one between floating dtypes, or a number is NaN,
// infinite (but for -infinity if `minus_infinity` says so) or too large for the destination.
void read_into(const SafetensorsFile& file, const TensorInfo& tensor, const at::Tensor& destination,
               bool minus_infinity = false);

}  // namespace tabes::checkpoint
