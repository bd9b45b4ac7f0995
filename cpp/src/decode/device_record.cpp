// What a step on the device came to, as the host reads it.
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "decode/answers.h"
#include "decode/device_loop.h"

namespace tabes {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

bool DeviceLoop::finish(Pending& step, StepRecord* before) {
  if (step.done) step.done->synchronize();
  StepRecord& record = step.record;
  const int64_t columns = step.rows.size(1), fields = step.rows.size(2);
  const double* value = step.rows.const_data_ptr<double>();
  const int64_t* counts = step.sequences.const_data_ptr<int64_t>();
  const size_t all = canvases_.size();
  if (pace_ == Pace::adaptive) record.steps = most_steps(record.step);
  record.masked.assign(all, 0);
  record.eligible.assign(all, 0);
  record.predicted_fall.assign(all, kNan);
  record.realised_fall.assign(all, kNan);
  // First what the model said, of all rows: what is wrong there may be so in any score.
  for (const auto& [field, what] :
       {std::pair{kEntropy, kBadLogits}, std::pair{kScore, kScoreNaN}}) {
    for (int64_t i = 0; i < static_cast<int64_t>(step.live.size()) * columns; ++i) {
      const double* f = value + i * fields;
      if (f[kValid] == 0 || !std::isnan(f[field])) continue;
      not_finite(record.step, step.live[i / columns]->place, static_cast<int64_t>(f[kPosition]),
                 what);
    }
  }
  std::vector<int64_t> sequence, position, token;
  std::vector<double> confidence, entropy, score, influence;
  std::vector<char> by_confidence;
  int64_t scored = 0;
  for (size_t b = 0; b < step.live.size(); ++b) {
    Canvas& c = *step.live[b];
    record.masked[c.place] = counts[3 * b];
    record.eligible[c.place] = counts[3 * b + 1];
    TORCH_INTERNAL_ASSERT(counts[3 * b + 1] <= columns, "a bound on eligible rows does not hold");
    Expectation expected;
    double predicted = 0;
    bool steered = false;
    std::vector<double> entropies(c.length(), kNan);
    for (int64_t k = 0; k < columns; ++k) {
      const double* f = value + (static_cast<int64_t>(b) * columns + k) * fields;
      if (f[kValid] == 0) continue;
      const auto at = static_cast<int64_t>(f[kPosition]);
      entropies[at] = f[kEntropy];
      if (!std::isnan(f[kInfluence])) ++scored;
      if (f[kProbe] != 0) {
        expected.positions.push_back(at);
        expected.entropy.push_back(f[kEntropy]);
      }
      if (f[kChosen] == 0) continue;
      if (!std::isnan(f[kInfluence])) {
        predicted += f[kInfluence];
        steered = true;
      }
      sequence.push_back(static_cast<int64_t>(c.place));
      position.push_back(at);
      token.push_back(static_cast<int64_t>(f[kToken]));
      confidence.push_back(f[kConfidence]);
      entropy.push_back(f[kEntropy]);
      score.push_back(f[kScore]);
      influence.push_back(f[kInfluence]);
      by_confidence.push_back(f[kByConfidence] != 0);
    }
    if (before) {
      before->realised_fall[c.place] = c.expected.fall([&](int64_t i) { return entropies[i]; });
    }
    if (steered) record.predicted_fall[c.place] = predicted;
    c.expected = steered ? std::move(expected) : Expectation{};
    if (pace_ == Pace::adaptive && counts[3 * b + 1] > 0) {
      check_count(*policy_, counts[3 * b + 2], least_count(c.schedule), counts[3 * b + 1]);
      c.schedule.advance(counts[3 * b + 2]);
    }
  }
  record.scored = scored;
  if (scored == 0) {
    for (const int64_t e : record.eligible) record.scored += e;
  }
  record.sequence = to_tensor(sequence);
  record.position = to_tensor(position);
  record.token = to_tensor(token);
  record.confidence = at::tensor(confidence, at::kDouble);
  record.entropy = at::tensor(entropy, at::kDouble);
  record.score = at::tensor(score, at::kDouble);
  record.influence = at::tensor(influence, at::kDouble);
  record.by_confidence = to_tensor({by_confidence.begin(), by_confidence.end()}).to(at::kBool);
  record.remasked_sequence = record.remasked_position = to_tensor({});
  record.model_seconds = kNan;
  record.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - step.start).count();
  return !position.empty();
}

}  // namespace tabes
