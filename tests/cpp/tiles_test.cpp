// The kernels' index maps, and how statistics of parts merge, against float64.
#include "ops/cuda/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "ops/cuda/aqa_params.h"
#include "ops/cuda/partials.h"

namespace tabes::gpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(Tiles, EveryRowOfARaggedBatchIsInOneTile) {
  const std::vector<int64_t> cu{0, 65, 65, 66, 194};
  const int batch = 4, size = 64;
  std::vector<int> seen(cu.back());
  const int64_t tiles = aqa_tiles(cu.data(), batch, size);
  EXPECT_EQ(tiles, 2 + 0 + 1 + 2);
  for (int64_t t = 0; t < tiles; ++t) {
    const Tile tile = find_tile(cu.data(), batch, t, size);
    ASSERT_GE(tile.sequence, 0);
    EXPECT_GE(tile.first, cu[tile.sequence]);
    EXPECT_LE(tile.first + tile.rows, cu[tile.sequence + 1]);
    for (int i = 0; i < tile.rows; ++i) ++seen[tile.first + i];
  }
  EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
  EXPECT_EQ(find_tile(cu.data(), batch, tiles, size).sequence, -1);
}

TEST(Tiles, SharesFollowOneAnotherAndAreEven) {
  for (int total : {0, 1, 7, 64}) {
    for (int parts : {1, 2, 5, 9}) {
      int next = 0;
      for (int part = 0; part < parts; ++part) {
        const Range r = share(total, parts, part);
        EXPECT_EQ(r.from, next);
        EXPECT_LE(std::abs(r.to - r.from - total / parts), 1);
        next = r.to;
      }
      EXPECT_EQ(next, total);
    }
  }
}

// ldmatrix reads the same piece of eight consecutive rows at once: 128 bytes, which must lie in all
// 32 banks. And no two pieces may share a place.
template <int D>
void check_swizzle() {
  std::set<int> places;
  for (int row = 0; row < 64; ++row) {
    for (int piece = 0; piece < D / 8; ++piece) places.insert(tile_offset<D>(row, piece));
  }
  EXPECT_EQ(places.size(), 64u * D / 8) << D;
  EXPECT_LE(*places.rbegin(), 64 * D - 8) << D;
  for (int row = 0; row < 64; row += 8) {
    for (int piece = 0; piece < D / 8; ++piece) {
      std::set<int> banks;
      for (int r = row; r < row + 8; ++r) banks.insert(tile_offset<D>(r, piece) / 8 % 8);
      EXPECT_EQ(banks.size(), 8u) << "D = " << D << ", piece " << piece << " of row " << row;
    }
  }
}
TEST(Tiles, SwizzledTilesHaveNoConflicts) {
  check_swizzle<32>();
  check_swizzle<64>();
  check_swizzle<96>();
  check_swizzle<128>();
  check_swizzle<256>();
}

TEST(Tiles, CornersAndAccumulatorsCoverTheirBlock) {
  for (bool major : {false, true}) {
    std::set<std::pair<int, int>> seen;
    for (int lane = 0; lane < 32; ++lane) {
      const Corner c = matrix_corner(lane, major);
      seen.insert({c.row, c.piece});
    }
    EXPECT_EQ(seen.size(), 32u);
    EXPECT_EQ(seen.rbegin()->first, 15);
  }
  std::set<std::pair<int, int>> seen;
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 4; ++e)
      seen.insert({accumulator_row(lane, e), accumulator_column(lane, e)});
  }
  EXPECT_EQ(seen.size(), 16u * 8);
}

// An H100 has 227 KiB for a block and an A100 163.
TEST(Tiles, SharedMemoryFits) {
  for (Number number : {Number::fp32, Number::bf16, Number::fp16}) {
    for (int d : {32, 64, 96, 128, 256}) {
      ASSERT_TRUE(aqa_has_head(d));
      EXPECT_LE(aqa_query_shape(number, d).shared_bytes, 163 << 10) << d;
      EXPECT_LE(aqa_key_shape(number, d).shared_bytes, 163 << 10) << d;
    }
  }
}

TEST(Partials, RowsInPartsMergeToTheWhole) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 30);
  for (int trial = 0; trial < 50; ++trial) {
    RowPartial all = empty_row();
    double sum = 0, weighted = 0, top = -kInf;
    std::vector<std::pair<float, float>> terms(1 + trial);
    for (auto& [x, w] : terms) {
      x = random() % 5 == 0 ? -kInf : normal(random);
      w = normal(random);
      top = std::max<double>(top, x);
    }
    for (int part = 0; part < 4; ++part) {
      RowPartial own = empty_row();
      const Range range = share(static_cast<int>(terms.size()), 4, part);
      for (int i = range.from; i < range.to; ++i) {
        if (terms[i].first == -kInf) continue;
        own = merge(own, {terms[i].first, 1.0f, terms[i].second});
      }
      all = merge(all, own);
    }
    if (top == -kInf) {
      EXPECT_EQ(log_sum(all), -kInf);
      EXPECT_EQ(mean_weight(all), 0.0f);
      EXPECT_EQ(log2_shift(log_sum(all)), kInf);
      continue;
    }
    double size = 0;
    for (const auto& [x, w] : terms) {
      sum += std::exp2(x - top);
      weighted += std::exp2(x - top) * w;
      size += std::exp2(x - top) * std::abs(w);
    }
    EXPECT_NEAR(log_sum(all), (top + std::log2(sum)) * std::log(2.0), 2e-5 + 1e-6 * std::abs(top));
    EXPECT_NEAR(mean_weight(all), weighted / sum, 1e-5 * size / sum);
  }
}

TEST(Partials, LogitsInPartsMergeToTheWhole) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0, 4);
  for (int trial = 0; trial < 60; ++trial) {
    std::vector<float> x(2 + trial);
    for (float& v : x) {
      // Few values, so that there are ties, and forbidden tokens among them.
      v = random() % 4 == 0 ? -kInf : std::round(normal(random));
    }
    x[random() % x.size()] = 0;
    LogitPartial all = empty_logits();
    for (int part = 0; part < 5; ++part) {
      LogitPartial own = empty_logits();
      const Range range = share(static_cast<int>(x.size()), 5, part);
      for (int i = range.from; i < range.to; ++i) add(own, x[i], i);
      // Either order of merging, as the lanes of a warp merge.
      all = part % 2 ? merge(all, own) : merge(own, all);
    }
    std::vector<float> sorted = x;
    std::sort(sorted.rbegin(), sorted.rend());
    double sum = 0, entropy = 0;
    for (float v : x) sum += std::exp(double{v} - sorted[0]);
    for (float v : x) {
      const double p = std::exp(double{v} - sorted[0]) / sum;
      if (p > 0) entropy -= p * std::log(p);
    }
    const LogitStatistics s = finish(all);
    EXPECT_NEAR(s.lse, sorted[0] + std::log(sum), 1e-5);
    EXPECT_NEAR(s.entropy, entropy, 1e-5);
    EXPECT_NEAR(s.max_prob, 1 / sum, 1e-6);
    EXPECT_NEAR(s.margin, (1 - std::exp(double{sorted[1]} - sorted[0])) / sum, 1e-6);
    EXPECT_EQ(s.argmax, std::find(x.begin(), x.end(), sorted[0]) - x.begin());
  }
}

}  // namespace
}  // namespace tabes::gpu
