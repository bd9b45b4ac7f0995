#include "batch/forbidden.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>

#include "messages.h"

namespace tabes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void sort_out(std::vector<int64_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace

std::vector<int64_t> checked_forbidden(const ModelInfo& info, std::vector<int64_t> ids,
                                       bool allow_special) {
  if (!allow_special) {
    ids.insert(ids.end(), info.special_token_ids.begin(), info.special_token_ids.end());
  }
  ids.push_back(info.mask_token_id);
  for (const int64_t id : ids) {
    if (id >= 0 && id < info.vocab_size) continue;
    refuse("forbidden token ", id, " is outside the vocabulary of ", info.vocab_size);
  }
  sort_out(ids);
  if (static_cast<int64_t>(ids.size()) == info.vocab_size) {
    refuse("every token is forbidden; leave at least one to write");
  }
  return ids;
}

at::Tensor& forbid(at::Tensor& logits, const at::Tensor& forbidden) {
  // NaN - inf and inf - inf are NaN, and all else - inf is -inf.
  return logits.index_copy_(1, forbidden, logits.index_select(1, forbidden).sub_(kInfinity));
}

std::vector<int64_t> never_text(std::vector<int64_t> ids, int64_t mask,
                                const std::vector<int64_t>& ends) {
  std::erase_if(ids, [&](int64_t id) {
    return id == mask || std::find(ends.begin(), ends.end(), id) != ends.end();
  });
  sort_out(ids);
  return ids;
}

}  // namespace tabes
