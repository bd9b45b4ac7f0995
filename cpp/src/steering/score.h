// The arithmetic of a BoE score, apart from the model so that it can be tested by hand.
#pragma once

#include <vector>

namespace tabes {

// Scaled to [0, 1]; all 1 where all are equal.
std::vector<double> minmax(const std::vector<double>& values);

struct ScoreWeights {
  double gamma, anti_collapse, floor;  // floor: h_t in nats
  double weight = -1;                  // of TIS in nats; below 0: the product
};

// c^gamma * minmax(TIS) - anti_collapse * max(0, floor - H)^2 for each candidate, or with
// gamma * log c + weight * TIS in the place of its first term.
std::vector<double> boe_scores(const std::vector<double>& confidence,
                               const std::vector<double>& influence,
                               const std::vector<double>& entropy, const ScoreWeights& weights);

}  // namespace tabes
