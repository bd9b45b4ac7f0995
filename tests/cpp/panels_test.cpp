// Products by panels against float64.
#include "model/panels.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <optional>

#include "model/linear.h"

namespace tabes {
namespace {

// Odd and even, under, at and over the width of a panel (64), the depth taken at once (1024) and
// the rows of a tile (32, 64) and of a task (256, 1024).
const int64_t kSizes[][2] = {{1, 1}, {30, 7}, {64, 64}, {65, 33}, {129, 1025}, {1090, 130}};
const int64_t kRowCounts[] = {1, 2, 31, 33, 64, 100, 257, 1100};

at::Tensor draw(at::IntArrayRef shape, at::ScalarType type) {
  return at::randn(shape, at::kDouble).to(type);
}

double tolerance(at::ScalarType type) {
  return type == at::kFloat ? 1e-5 : 0x1p-8;
}

void expect_near(const at::Tensor& got, const at::Tensor& wanted, at::ScalarType type) {
  ASSERT_EQ(got.scalar_type(), type);
  ASSERT_EQ(got.sizes(), wanted.sizes());
  const double scale = wanted.abs().max().item<double>() + 1;
  const double error = (got.to(at::kDouble) - wanted).abs().max().item<double>();
  EXPECT_LE(error, tolerance(type) * scale);
}

class PanelProducts : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    at::manual_seed(0);
    if (!has_panel_products(at::empty({1, 1}, GetParam()))) GTEST_SKIP() << "not on this machine";
  }
};

TEST_P(PanelProducts, AreTheProductsOfEveryShapeInBothLayouts) {
  const at::ScalarType type = GetParam();
  const auto real = [](const at::Tensor& t) { return t.to(at::kDouble); };
  for (const auto& [out, in] : kSizes) {
    const at::Tensor weight = draw({out, in}, type), bias = draw({out}, type);
    const PanelWeight layouts[] = {{weight, false, out, in}, {to_panels(weight), true, out, in}};
    ASSERT_TRUE(from_panels(layouts[1].data, out, in).equal(weight));
    for (const int64_t n : kRowCounts) {
      SCOPED_TRACE(testing::Message() << out << " x " << in << ", rows " << n);
      const at::Tensor x = draw({n, in}, type), g = draw({n, out}, type);
      const at::Tensor to_out = draw({n, out}, type), to_in = draw({n, in}, type);
      const at::Tensor y = at::matmul(real(x), real(weight).t()), b = real(bias);
      const at::Tensor back = at::matmul(real(g), real(weight));
      for (const PanelWeight& layout : layouts) {
        expect_near(layout.product(x, {}), y, type);
        expect_near(layout.product(x, {bias, to_out}), y + b + real(to_out), type);
        expect_near(layout.product(x, {bias, {}, cpu::Activation::gelu}), at::gelu(y + b), type);
        expect_near(layout.product(x, {bias, {}, cpu::Activation::gelu_tanh}),
                    at::gelu(y + b, "tanh"), type);
        expect_near(layout.adjoint(g, {}), back, type);
        expect_near(layout.adjoint(g, {{}, to_in}), back + real(to_in), type);
      }
    }
  }
}

// What lies behind a row of odd length is not read into it.
TEST_P(PanelProducts, ReadNothingBehindTheRows) {
  const at::ScalarType type = GetParam();
  const int64_t out = 67, in = 35, n = 5;
  const at::Tensor weight = draw({out, in}, type);
  at::Tensor memory = at::full({(n + 1) * in}, std::numeric_limits<double>::quiet_NaN(), type);
  const at::Tensor x = memory.narrow(0, 0, n * in).view({n, in});
  x.copy_(draw({n, in}, type));
  const PanelWeight packed{to_panels(weight), true, out, in};
  expect_near(packed.product(x, {}), at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t()),
              type);
}

TEST_P(PanelProducts, OfARowDoNotDependOnTheOthers) {
  const at::ScalarType type = GetParam();
  const int64_t out = 130, in = 1500;
  const at::Tensor weight = draw({out, in}, type), x = draw({300, in}, type);
  const PanelWeight packed{to_panels(weight), true, out, in};
  const at::Tensor all = packed.product(x, {});
  for (const int64_t n : {1, 5, 40, 64, 299}) {
    EXPECT_TRUE(packed.product(x.narrow(0, 1, n), {}).equal(all.narrow(0, 1, n))) << n;
  }
}

// case N18
TEST_P(PanelProducts, HoldOneCopyOfTheWeight) {
  const at::Tensor weight = draw({256, 512}, GetParam());
  EXPECT_EQ(to_panels(weight).nbytes(), weight.nbytes());
  const Linear map(weight, {}, /*prepack=*/true);
  EXPECT_TRUE(map.is_packed());
  EXPECT_EQ(weight.use_count(), 1);  // the plain one is ours alone again
}

// Somebody may turn oneDNN off after the model was loaded.
TEST_P(PanelProducts, AreMadeWithoutOneDnnToo) {
  const at::ScalarType type = GetParam();
  const at::Tensor weight = draw({70, 33}, type), x = draw({9, 33}, type), g = draw({9, 70}, type);
  const Linear map(weight, {}, /*prepack=*/true);
  at::globalContext().setUserEnabledMkldnn(false);
  const at::Tensor y = map(x), back = map.adjoint(g);
  at::globalContext().setUserEnabledMkldnn(true);
  const at::Tensor real = weight.to(at::kDouble);
  expect_near(y, at::matmul(x.to(at::kDouble), real.t()), type);
  expect_near(back, at::matmul(g.to(at::kDouble), real), type);
}

INSTANTIATE_TEST_SUITE_P(Types, PanelProducts, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& t) {
                           return t.param == at::kFloat ? "float" : "bfloat16";
                         });

}  // namespace
}  // namespace tabes
