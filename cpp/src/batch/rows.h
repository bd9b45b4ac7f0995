// Packing host tokens and row numbers into the tensors a denoiser takes.
#pragma once

#include <cstdint>
#include <vector>

#include "tabes/denoiser.h"

namespace tabes {

using HostTokens = std::vector<int64_t>;

// Whether `tokens` is a 1-D tensor of integers.
bool is_token_row(const at::Tensor& tokens);

// Copies 1-D integer tensors to host vectors. Throws InputError for an empty batch or sequence, a
// wrong shape or dtype, a token outside the vocabulary, or a sequence longer than the model takes.
std::vector<HostTokens> checked_tokens(const ModelInfo& info,
                                       const std::vector<at::Tensor>& sequences);

PackedBatch pack(const std::vector<const HostTokens*>& sequences, at::Device device);

RowSet row_set(const std::vector<int64_t>& rows, std::vector<int64_t> cu_rows, at::Device device);

// Every row of the batch.
RowSet all_rows(const PackedBatch& batch);

// The rows whose outputs predict `rows` in a model with ModelInfo::logit_shift: row i is predicted
// at i - 1, a sequence's first row by its own output.
RowSet predicting(const PackedBatch& batch, const RowSet& rows);

at::Tensor to_tensor(const std::vector<int64_t>& values, at::Device device = at::kCPU);

}  // namespace tabes
