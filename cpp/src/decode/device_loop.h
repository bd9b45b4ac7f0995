// A decode whose rows are selected on the model's device. The host knows the shapes of a step
// beforehand, exactly or as bounds, and learns what a step revealed while the next one runs, so it
// never makes the device wait: no step reads a number from it. One file each: the decode
// (device_loop.cpp), a step of it (device_step.cpp), and reading what it came to
// (device_record.cpp).
#pragma once

#include <c10/core/Event.h>

#include <chrono>
#include <limits>
#include <optional>
#include <vector>

#include "batch/device_select.h"
#include "decode/decode.h"

namespace tabes {

// The block of a cell that has none.
inline constexpr int64_t kNoBlock = std::numeric_limits<int64_t>::max();

class DeviceLoop : protected Decode {
 public:
  // `decode` is not bound_to_host(). Rows are computed in multiples of `bucket` a sequence, where
  // it has as many, so that steps have few shapes.
  explicit DeviceLoop(Decode decode, int64_t bucket = 1);
  virtual ~DeviceLoop() = default;
  GenerateResult run();

 protected:
  // What the host knows of a step before it runs, by sequence: exactly, or at most.
  struct Bounds {
    std::vector<int64_t> eligible;  // eligible rows
    std::vector<int64_t> columns;   // the same, rounded up to buckets
    std::vector<int64_t> quota;     // rows to be revealed
    std::vector<int64_t> active;    // rows of a frozen pass
    std::vector<size_t> block;      // as known
  };
  // The sequences that may have masks left, on the device.
  struct State {
    std::vector<Canvas*> live;
    std::vector<int64_t> cu_seqlens;
    at::Tensor tokens;  // [R]
    // [B, W], W the longest: the row of each cell, whether there is one, and its block (past all
    // blocks where it has none).
    at::Tensor row, inside, block;
    at::Tensor block_steps;             // [B, blocks]
    at::Tensor sequence, first, steps;  // [B], see DeviceStep
    at::Tensor current, done;           // [B]: the block of the last step, and its steps
    at::Tensor before;                  // [B, W]: was eligible in the last step
    Bounds before_bounds;               // of it

    int64_t size() const { return static_cast<int64_t>(live.size()); }
    int64_t width() const { return row.size(1); }
  };
  // Where the masks are, and how many of them the schedule wants revealed.
  struct Masks {
    at::Tensor masked, is_eligible;           // [B, W] bool
    at::Tensor block, done, eligible, quota;  // [B]: `done` steps of the block before this one
  };
  // The rows to be looked at: the eligible ones, and others up to the bound.
  struct Looked {
    Ragged shape;
    at::Tensor position = {}, row = {}, valid = {};  // [B, K]
    RowSet set = {};
    std::optional<RowSet> active = {};  // in a frozen pass
  };
  // What is read of every entry of a step.
  enum Field {
    kPosition,
    kValid,
    kChosen,
    kToken,
    kConfidence,
    kEntropy,
    kScore,
    kInfluence,
    kProbe,
    kByConfidence
  };
  // A step that the device may still be at.
  struct Pending {
    StepRecord record;
    std::vector<Canvas*> live;
    at::Tensor rows;       // [B, K, fields] float64, bound for the host; see Field
    at::Tensor sequences;  // [B, 3] int64: masked, eligible, revealed
    std::optional<c10::Event> done;
    std::chrono::steady_clock::time_point start;
  };

  void open();
  // Leaves out the sequences that are known to be finished.
  void keep_unfinished();
  // Of the next step; `pending`: the one before it has not been read.
  Bounds bounds(bool pending) const;
  // The shape of these counts, which is `last` if that has them.
  const Ragged& ragged(const std::vector<int64_t>& counts, std::optional<Ragged>& last) const;
  Masks masks() const;
  Looked looked_at(const Masks& masks, const Bounds& most, bool frozen);
  // The pass over the live sequences.
  Predicted look(const Looked& rows, bool keep_context, StepRecord& record);
  Pending launch(int64_t number, bool pending);
  // Writes the best rows of every sequence, and what the host is to know of it into the step.
  void write(const Masks& masks, const Looked& rows, const Predictions& predictions,
             const DeviceDecision& decision, Pending& step);
  // Waits for the step and reads it; false if it came too late to reveal anything.
  bool finish(Pending& pending, StepRecord* before);
  // Sends what a step came to on its way to the host.
  virtual void send(Pending& step) const;

 private:
  int64_t bucket_;
  State state_;
  at::Tensor number_;  // [1] of the step, on the device
  at::Tensor ends_;    // ids of end tokens, if these are revealed last
  // Of the last step: what was looked at, and what a frozen pass computed.
  std::optional<Ragged> columns_, active_;
  std::vector<at::Tensor> finished_;  // tokens by place, of sequences left out
};

}  // namespace tabes
