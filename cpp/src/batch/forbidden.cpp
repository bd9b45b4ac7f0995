#include "batch/forbidden.h"

#include <algorithm>

#include "messages.h"

namespace tabes {

std::vector<int64_t> checked_forbidden(const ModelInfo& info, std::vector<int64_t> ids) {
  ids.push_back(info.mask_token_id);
  for (const int64_t id : ids) {
    if (id >= 0 && id < info.vocab_size) continue;
    refuse("forbidden token ", id, " is outside the vocabulary of ", info.vocab_size);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  if (static_cast<int64_t>(ids.size()) == info.vocab_size) {
    refuse("every token is forbidden; leave at least one to write");
  }
  return ids;
}

}  // namespace tabes
