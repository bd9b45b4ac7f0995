// 16-bit numbers as kernels see them, without the headers of CUDA or of PyTorch.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define TABES_DEVICE __device__ __forceinline__
#define TABES_HOST_DEVICE __host__ __device__
#else
#define TABES_DEVICE inline
#define TABES_HOST_DEVICE
#endif

namespace tabes::gpu {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <typename T>
struct IsBFloat16 {
  static constexpr bool value = false;
};
template <>
struct IsBFloat16<BFloat16> {
  static constexpr bool value = true;
};

TABES_DEVICE uint32_t float_bits(float v) {
#if defined(__CUDACC__)
  return __float_as_uint(v);
#else
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
#endif
}
TABES_DEVICE float bits_float(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
#endif
}

#if !defined(__CUDACC__)
// Round to nearest, ties to even, as the hardware does.
inline uint16_t to_bfloat16_bits(float v) {
  const uint32_t bits = float_bits(v);
  if (v != v) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_half_bits(float v) {
  const uint32_t bits = float_bits(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    // Subnormal: adding 1/2 leaves the number of 2^-24 steps in the last bits of the sum.
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000));
  }
  return static_cast<uint16_t>(sign |
                               ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}
inline float from_half_bits(uint16_t half) {
  const uint32_t sign = uint32_t{half} << 16 & 0x80000000, rest = half & 0x7fffu;
  if (rest >= 0x7c00) return bits_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest < 0x400) {
    const float v = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -v : v;
  }
  return bits_float(sign | ((rest << 13) + 0x38000000));
}
#endif

TABES_DEVICE float to_float(float v) {
  return v;
}
TABES_DEVICE float to_float(BFloat16 v) {
  return bits_float(uint32_t{v.bits} << 16);
}
TABES_DEVICE float to_float(Half v) {
#if defined(__CUDACC__)
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
  return out;
#else
  return from_half_bits(v.bits);
#endif
}

// Two numbers of T in one register, the first in the low half.
template <typename T>
TABES_DEVICE uint32_t pack(float first, float second) {
#if defined(__CUDACC__)
  uint32_t out;
  if constexpr (IsBFloat16<T>::value) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  }
  return out;
#else
  const auto bits = [](float v) -> uint32_t {
    return IsBFloat16<T>::value ? to_bfloat16_bits(v) : to_half_bits(v);
  };
  return bits(first) | bits(second) << 16;
#endif
}

template <typename T>
TABES_DEVICE T from_float(float v) {
  return T{static_cast<uint16_t>(pack<T>(v, 0.0f))};
}
template <>
TABES_DEVICE float from_float<float>(float v) {
  return v;
}

}  // namespace tabes::gpu
