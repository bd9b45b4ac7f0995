// Which tokens no distribution may give any probability.
#pragma once

#include <cstdint>
#include <vector>

#include "tabes/denoiser.h"

namespace tabes {

// `ids`, the mask token and, unless they are allowed, special tokens; sorted and without repeats.
// Throws InputError if one is outside the vocabulary or if no token is left to write.
std::vector<int64_t> checked_forbidden(const ModelInfo& info, std::vector<int64_t> ids,
                                       bool allow_special);

// Gives these tokens ([f] int64, on the device) probability 0 in logits [n, V], in place; returns
// them. What is NaN or infinite in their columns is NaN from then on, so that a model that computes
// it is found out whichever token it is at.
at::Tensor& forbid(at::Tensor& logits, const at::Tensor& forbidden);

// `ids` as ModelInfo::special_token_ids has them: sorted, without repeats, `mask` and `ends`.
std::vector<int64_t> never_text(std::vector<int64_t> ids, int64_t mask,
                                const std::vector<int64_t>& ends);

}  // namespace tabes
