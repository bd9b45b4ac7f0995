// Sets of rows that the host chose are never asked back from the device, and costs add up. On the
// meta device whoever reads a number fails.
#include "batch/rows.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include "decode/canvas.h"
#include "tabes/policy.h"

namespace tabes {
namespace {

std::vector<int64_t> numbers(const at::Tensor& t) {
  return {t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel()};
}

const std::vector<HostTokens>& canvases() {
  static const std::vector<HostTokens> tokens{{1, 9, 9, 2}, {9, 1, 9}};  // 9 is the mask
  return tokens;
}

ModelInfo info_on(at::Device device, bool logit_shift = false) {
  ModelInfo info;
  info.vocab_size = 10;
  info.max_length = 8;
  info.mask_token_id = 9;
  info.device = device;
  info.logit_shift = logit_shift;
  return info;
}

// case R10
TEST(RowSet, KnowsItsNumbersOnBothSides) {
  for (const at::Device device : {at::kCPU, at::kMeta}) {
    const PackedBatch batch = pack({&canvases()[0], &canvases()[1]}, device);
    const RowSet some = row_set({1, 2, 4, 6}, {0, 2, 4}, device);
    EXPECT_EQ(some.rows.device(), device);
    EXPECT_EQ(numbers(some.on_host()), (std::vector<int64_t>{1, 2, 4, 6}));
    EXPECT_EQ(numbers(all_rows(batch).on_host()), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6}));
    // A sequence's first row is predicted by its own output.
    const RowSet outputs = predicting(batch, some);
    EXPECT_EQ(outputs.rows.device(), device);
    EXPECT_EQ(numbers(outputs.on_host()), (std::vector<int64_t>{0, 1, 4, 5}));
    EXPECT_EQ(outputs.cu_rows, some.cu_rows);
  }
  // What only the device knows is read from there.
  EXPECT_THROW((RowSet{at::empty({2}, at::TensorOptions(at::kMeta).dtype(at::kLong)), {0, 2}})
                   .on_host()
                   .const_data_ptr<int64_t>(),
               c10::Error);
}

// case R10
TEST(RowSet, TheNumbersAreTheSameOnBothSides) {
  const PackedBatch batch = pack({&canvases()[0], &canvases()[1]}, at::kCPU);
  const RowSet some = row_set({1, 2, 4, 6}, {0, 2, 4}, at::kCPU);
  RowSet unknown = some;  // as the device loop makes them
  unknown.host = at::Tensor();
  EXPECT_TRUE(at::equal(predicting(batch, unknown).rows, predicting(batch, some).rows));
  EXPECT_TRUE(at::equal(unknown.on_host(), some.on_host()));
}

// case R10
TEST(RowSet, StepsLayOutWithoutTheDevice) {
  for (const bool shift : {false, true}) {
    const ModelInfo info = info_on(at::kMeta, shift);
    std::vector<Canvas> held;
    for (size_t i = 0; i < 2; ++i) {
      held.push_back({.place = i,
                      .tokens = canvases()[i],
                      .unguided = {},
                      .confidence = {},
                      .schedule = Schedule(canvases()[i], 9, 4, {}, i),
                      .id = 0});
    }
    std::vector<Canvas*> live{&held[0], &held[1]};
    const Layout layout = lay_out(live, info, true);
    EXPECT_EQ(numbers(layout.eligible.on_host()), (std::vector<int64_t>{1, 2, 4, 6}));
    held[0].stale = {3};
    const RowSet active = active_rows(live, layout.batch, layout.eligible, info);
    EXPECT_EQ(numbers(active.on_host()), shift ? (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6})
                                               : (std::vector<int64_t>{1, 2, 3, 4, 6}));
    std::vector<char> from_second;
    const RowSet both =
        merged(layout.eligible, row_set({0, 5}, {0, 1, 2}, info.device), &from_second);
    EXPECT_EQ(numbers(both.on_host()), (std::vector<int64_t>{0, 1, 2, 4, 5, 6}));
    EXPECT_EQ(from_second, (std::vector<char>{1, 0, 0, 0, 1, 0}));
  }
}

// case R10
TEST(Cost, AddsUp) {
  Cost cost{.forward_rows = 1, .backward_rows = 2, .head_rows = 3};
  cost += {.forward_rows = 10, .backward_rows = 20, .head_rows = 30};
  EXPECT_EQ(cost.forward_rows, 11);
  EXPECT_EQ(cost.backward_rows, 22);
  EXPECT_EQ(cost.head_rows, 33);
}

}  // namespace
}  // namespace tabes
