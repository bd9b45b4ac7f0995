#include "decode/schedule.h"

#include <algorithm>

#include "messages.h"

namespace tabes {

Schedule::Schedule(const HostTokens& tokens, int64_t mask_token_id, int64_t steps,
                   std::optional<int64_t> block_length, size_t number) {
  const auto is_mask = [&](int64_t t) { return t == mask_token_id; };
  const auto first = std::find_if(tokens.begin(), tokens.end(), is_mask);
  const int64_t length = static_cast<int64_t>(tokens.size());
  const int64_t start = first - tokens.begin();
  const int64_t width = block_length ? *block_length : std::max<int64_t>(1, length);
  // Bounds are compared as distances, so that a huge block_length cannot overflow a sum.
  for (int64_t begin = start; begin < length;) {
    const int64_t end = width < length - begin ? begin + width : length;
    const int64_t masks = std::count_if(tokens.begin() + begin, tokens.begin() + end, is_mask);
    if (masks > 0) blocks_.push_back({begin, end, masks, 0});
    masked_ += masks;
    begin = end;
  }
  const int64_t count = static_cast<int64_t>(blocks_.size());
  if (count > steps) {
    refuse("sequence ", number, " has ", count, " blocks of masks but steps is ", steps,
           "; raise steps to at least ", count, " or raise block_length");
  }
  for (int64_t i = 0; i < count; ++i) {
    blocks_[i].steps = steps / count + (i < steps % count ? 1 : 0);
    total_steps_ += std::min(blocks_[i].steps, blocks_[i].masks);
  }
}

int64_t Schedule::quota() const {
  const Block& b = blocks_[block_];
  const int64_t steps = std::max<int64_t>(1, b.steps);
  return b.masks / steps + (b.masks % steps != 0);
}

void Schedule::advance(int64_t count) {
  Block& b = blocks_[block_];
  b.masks -= count;
  masked_ -= count;
  --b.steps;
  if (b.masks == 0) ++block_;
}

}  // namespace tabes
