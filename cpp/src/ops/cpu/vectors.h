// For the files that are compiled once per instruction set: the build defines TABES_ISA (the
// namespace) and the matching CPU_CAPABILITY macros, which decide what at::vec::Vectorized is.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>

namespace tabes::cpu::TABES_ISA {
namespace {

template <typename A>
using Vec = at::vec::Vectorized<A>;

template <typename A>
A reduce_add(const Vec<A>& v) {
  return at::vec::vec_reduce_all<A>([](const Vec<A>& a, const Vec<A>& b) { return a + b; }, v);
}

// Calls body(offset, count) over [0, n) in vector-sized pieces; count < size() only at the end.
template <typename A, typename Body>
inline void for_pieces(int64_t n, const Body& body) {
  constexpr int64_t step = Vec<A>::size();
  int64_t i = 0;
  for (; i + step <= n; i += step) body(i, step);
  if (i < n) body(i, n - i);
}

template <typename A>
inline Vec<A> load(const A* p, int64_t count) {
  return count == Vec<A>::size() ? Vec<A>::loadu(p) : Vec<A>::loadu(p, count);
}

template <typename A>
inline void store(const Vec<A>& v, A* p, int64_t count) {
  if (count == Vec<A>::size()) {
    v.store(p);
  } else {
    v.store(p, count);
  }
}

}  // namespace
}  // namespace tabes::cpu::TABES_ISA
