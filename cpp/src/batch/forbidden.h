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

// `ids` as ModelInfo::special_token_ids has them: sorted, without repeats, `mask` and `ends`.
std::vector<int64_t> never_text(std::vector<int64_t> ids, int64_t mask,
                                const std::vector<int64_t>& ends);

}  // namespace tabes
