#include "decode/schedule.h"

#include <algorithm>

#include "messages.h"

namespace tabes {

Schedule::Schedule(const HostTokens& tokens, int64_t mask_token_id, int64_t steps,
                   std::optional<int64_t> block_length, size_t number, Pace pace, bool keeps_quota)
    : pace_(pace), keeps_quota_(keeps_quota) {
  const auto is_mask = [&](int64_t t) { return t == mask_token_id; };
  const auto first = std::find_if(tokens.begin(), tokens.end(), is_mask);
  const int64_t length = static_cast<int64_t>(tokens.size());
  start_ = first - tokens.begin();
  const int64_t width = block_length ? *block_length : std::max<int64_t>(1, length);
  // Bounds are compared as distances, so that a huge block_length cannot overflow a sum.
  for (int64_t begin = start_; begin < length;) {
    const int64_t end = width < length - begin ? begin + width : length;
    const int64_t masks = std::count_if(tokens.begin() + begin, tokens.begin() + end, is_mask);
    if (masks > 0) blocks_.push_back({begin, end, masks, 0, 0});
    masked_ += masks;
    begin = end;
  }
  const int64_t count = static_cast<int64_t>(blocks_.size());
  if (count > steps && pace != Pace::adaptive) {
    refuse("sequence ", number, " has ", count, " blocks of masks but steps is ", steps,
           "; raise steps to at least ", count, " or raise block_length");
  }
  for (int64_t i = 0; i < count; ++i) {
    Block& b = blocks_[i];
    b.steps = std::max<int64_t>(1, steps / count + (i < steps % count ? 1 : 0));
  }
  total_steps_ = steps_left();
}

int64_t Schedule::steps_left() const {
  int64_t left = 0;
  for (size_t i = block_; i < blocks_.size(); ++i) {
    const Block& b = blocks_[i];
    const bool any = pace_ == Pace::adaptive && !keeps_quota_;  // then a mask may take a step
    left += pace_ == Pace::timed ? b.steps - b.done
            : any                ? b.masks
                                 : std::min(std::max<int64_t>(1, b.steps - b.done), b.masks);
  }
  return left;
}

namespace {

int64_t quota_of(const Schedule::Block& b) {
  const int64_t steps = std::max<int64_t>(1, b.steps - b.done);
  return b.masks / steps + (b.masks % steps != 0);
}

}  // namespace

int64_t Schedule::quota() const {
  return quota_of(blocks_[block_]);
}

int64_t Schedule::most_eligible(int64_t steps) const {
  int64_t most = std::max<int64_t>(0, blocks_[block_].masks - steps);
  for (size_t i = block_ + 1; i < blocks_.size(); ++i) most = std::max(most, blocks_[i].masks);
  return most;
}

int64_t Schedule::most_quota() const {
  int64_t most = 0;
  for (size_t i = block_; i < blocks_.size(); ++i) most = std::max(most, quota_of(blocks_[i]));
  return most;
}

void Schedule::advance(int64_t count, int64_t again) {
  Block& b = blocks_[block_];
  b.masks += again - count;
  masked_ += again - count;
  ++b.done;
  if (pace_ == Pace::timed ? b.done == b.steps : b.masks == 0) ++block_;
}

}  // namespace tabes
