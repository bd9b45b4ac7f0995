// One sequence on its way from masks to tokens.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "batch/rows.h"
#include "decode/schedule.h"
#include "tabes/policy.h"

namespace tabes {

// What a steered step expected of one sequence, to be compared with the next step.
struct Expectation {
  std::vector<int64_t> positions;  // of its probes
  std::vector<double> entropy;     // of each, in nats

  // By how much the entropies have fallen in all, `entropy_at(position)` being what they are now,
  // NaN where that is not known; NaN if it is known nowhere.
  template <typename EntropyAt>
  double fall(const EntropyAt& entropy_at) const {
    double sum = 0;
    bool found = false;
    for (size_t i = 0; i < positions.size(); ++i) {
      const double now = entropy_at(positions[i]);
      if (std::isnan(now)) continue;
      sum += entropy[i] - now;
      found = true;
    }
    return found ? sum : std::numeric_limits<double>::quiet_NaN();
  }
};

// What the model predicts where these positions have been revealed, known from looking ahead.
struct Foreseen {
  std::vector<int64_t> positions;  // increasing
  Predictions predictions;         // at the rows then eligible
  at::Tensor features;
};

struct Canvas {
  size_t place;  // among the caller's sequences
  HostTokens tokens;
  HostTokens unguided;             // the given tokens masked; kept only under guidance
  std::vector<double> confidence;  // of every position when it was revealed
  Schedule schedule;
  int64_t id;        // keys its random draws
  int64_t step = 0;  // its own count
  Expectation expected = {};
  std::vector<int64_t> stale = {};               // positions written since the context was
  std::vector<Foreseen> foreseen = {};           // by looking ahead in the current step
  std::optional<Foreseen> known = std::nullopt;  // the predictions of the coming step

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  void write(int64_t position, int64_t token) {
    tokens[position] = token;
    if (!unguided.empty()) unguided[position] = token;
  }
};

// Some canvases packed for the model, with the rows that may be revealed.
struct Layout {
  PackedBatch batch;
  RowSet eligible;
  std::vector<int64_t> positions;  // of the eligible rows, within their sequences
  RowSet waiting;                  // masked rows of later blocks, where they are wanted
};

Layout lay_out(const std::vector<Canvas*>& canvases, const ModelInfo& info, bool with_waiting);

// The rows that a pass in a frozen context computes: those to be predicted, those that predict
// them, and those written since the last pass.
RowSet active_rows(const std::vector<Canvas*>& canvases, const PackedBatch& batch,
                   const RowSet& wanted, const ModelInfo& info);

// Both sets, which have no row in common; in `second_part`, if given, whether a row is of `second`.
RowSet merged(const RowSet& first, const RowSet& second, std::vector<char>* second_part = nullptr);

}  // namespace tabes
