// Which block of a sequence is decoded now, and how many of its masks the next step reveals.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "batch/rows.h"
#include "tabes/policy.h"

namespace tabes {

class Schedule {
 public:
  struct Block {
    int64_t begin, end;   // positions
    int64_t masks;        // left
    int64_t steps, done;  // given to it, and of these taken
  };

  // Blocks of `block_length` positions from the first mask on (none: one block to the end); those
  // without a mask are left out. Each block gets steps / blocks steps, the remainder going to the
  // first ones. Throws InputError, naming sequence `number`, if there are more blocks than steps,
  // unless the pace is adaptive. `keeps_quota`: no step reveals fewer rows than its quota.
  Schedule(const HostTokens& tokens, int64_t mask_token_id, int64_t steps,
           std::optional<int64_t> block_length, size_t number, Pace pace = Pace::quota,
           bool keeps_quota = true);

  bool done() const { return block_ == blocks_.size(); }
  // Positions [begin, end) of the current block; its masked positions are eligible.
  int64_t begin() const { return blocks_[block_].begin; }
  int64_t end() const { return blocks_[block_].end; }
  int64_t masked() const { return masked_; }  // in the whole sequence
  // Masks the next step reveals: those left over the steps left, rounded up. This is LLaDA's
  // division with the remainder going to the early steps.
  int64_t quota() const;
  int64_t total_steps() const { return total_steps_; }  // at most, from the beginning
  // How many steps are still to come: exactly, or at most under an adaptive pace.
  int64_t steps_left() const;
  int64_t start() const { return start_; }  // the first position that was masked
  int64_t block_step() const { return blocks_[block_].done; }
  int64_t block_steps() const { return blocks_[block_].steps; }
  // Whether the next step must reveal all that is left of the block.
  bool last_of_block() const { return blocks_[block_].done + 1 >= blocks_[block_].steps; }

  // A step has revealed `count` masks of the current block and masked `again` positions anew.
  void advance(int64_t count, int64_t again = 0);

  const std::vector<Block>& blocks() const { return blocks_; }
  size_t block() const { return block_; }  // number of the current one
  // What may be revealed in the next step: the masks of the current block.
  int64_t eligible() const { return blocks_[block_].masks; }
  // Bounds on eligible() and quota() when this is `steps` steps behind. The second holds if these
  // reveal no fewer rows than their quota.
  int64_t most_eligible(int64_t steps) const;
  int64_t most_quota() const;

 private:
  Pace pace_;
  bool keeps_quota_;
  std::vector<Block> blocks_;
  size_t block_ = 0;
  int64_t masked_ = 0;
  int64_t total_steps_ = 0;
  int64_t start_ = 0;
};

}  // namespace tabes
