// Decisions made before kernels are launched.
#include "ops/cuda/plan.h"

#include <gtest/gtest.h>

namespace tabes::gpu {
namespace {

AttentionSizes usual() {
  return {.number = Number::bf16,
          .head_dim = 128,
          .batch = 2,
          .queries = 512,
          .keys = 2048,
          .equal_lengths = true,
          .bias = false,
          .kept = true,
          .deterministic = false};
}

TEST(Plan, ManyActiveRowsGoToFlashAndFewToOurs) {
  AttentionSizes s = usual();
  EXPECT_EQ(choose_route(s), Route::flash);
  s.queries = 128;
  EXPECT_EQ(choose_route(s), Route::own);
  s.queries = 129;
  EXPECT_EQ(choose_route(s), Route::flash);
}

TEST(Plan, WhatOnlyOursCanDoGoesToOurs) {
  AttentionSizes s = usual();
  s.number = Number::fp32;
  EXPECT_EQ(choose_route(s), Route::own);
  s = usual();
  s.deterministic = true;
  EXPECT_EQ(choose_route(s), Route::own);
  s = usual();
  s.bias = true;
  EXPECT_EQ(choose_route(s), Route::own);
  s = usual();
  s.kept = false;
  EXPECT_EQ(choose_route(s), Route::own);
}

TEST(Plan, HeadSizesWithoutAKernel) {
  AttentionSizes s = usual();
  s.head_dim = 80;
  s.queries = 4;
  EXPECT_EQ(choose_route(s), Route::flash);
  s.number = Number::fp32;
  EXPECT_EQ(choose_route(s), Route::efficient);
  s.equal_lengths = false;
  EXPECT_EQ(choose_route(s), std::nullopt);
  s = usual();
  s.head_dim = 80;
  s.deterministic = true;
  EXPECT_EQ(choose_route(s), Route::flash);
  s.number = Number::fp32;
  EXPECT_EQ(choose_route(s), std::nullopt);
  s = usual();
  s.head_dim = 300;
  EXPECT_EQ(choose_route(s), std::nullopt);
}

TEST(Plan, AWantedRouteIsTakenOrRefused) {
  AttentionSizes s = usual();
  EXPECT_EQ(choose_route(s, Route::own), Route::own);
  EXPECT_EQ(choose_route(s, Route::efficient), Route::efficient);
  s.deterministic = true;
  EXPECT_EQ(choose_route(s, Route::efficient), std::nullopt);
  EXPECT_EQ(route_named("flash"), Route::flash);
  EXPECT_EQ(route_named("own"), Route::own);
  EXPECT_EQ(route_named("efficient"), Route::efficient);
  EXPECT_EQ(route_named("Flash"), std::nullopt);
}

TEST(Plan, LoopsAreCutOnlyWhereBlocksAreFew) {
  EXPECT_EQ(loop_splits(0, 132, 100), 1);
  EXPECT_EQ(loop_splits(264, 132, 100), 1);
  EXPECT_EQ(loop_splits(263, 132, 100), 2);
  EXPECT_EQ(loop_splits(32, 132, 16), 8);
  EXPECT_EQ(loop_splits(32, 132, 3), 1);  // a part keeps two steps
  EXPECT_EQ(loop_splits(1, 132, 1000), kMostSplits);
}

TEST(Plan, RowsOfLogitsAreCutBelowTheNumberOfMultiprocessors) {
  EXPECT_EQ(row_splits(132, 126464, 132), 1);
  EXPECT_EQ(row_splits(131, 126464, 132), 2);
  EXPECT_EQ(row_splits(4, 126464, 132), 15);
  EXPECT_EQ(row_splits(4, 8000, 132), 1);
  EXPECT_EQ(row_splits(0, 126464, 132), 1);
}

}  // namespace
}  // namespace tabes::gpu
