// Which tokens no distribution may give any probability.
#pragma once

#include <cstdint>
#include <vector>

#include "tabes/denoiser.h"

namespace tabes {

// `ids` and the mask token, sorted and without repeats. Throws InputError if one is outside the
// vocabulary or if no token is left to write.
std::vector<int64_t> checked_forbidden(const ModelInfo& info, std::vector<int64_t> ids);

}  // namespace tabes
