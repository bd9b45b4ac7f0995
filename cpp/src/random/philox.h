// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011):
// random bits as a function of a key and a counter, the same on every device. A draw is named by
// what it is for (seed, sequence, position, step), so it cannot depend on batch order or threads.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TABES_HOST_DEVICE __host__ __device__
#else
#define TABES_HOST_DEVICE
#endif

namespace tabes {

struct PhiloxBlock {
  uint32_t v[4];
};

TABES_HOST_DEVICE inline PhiloxBlock philox(uint64_t key, uint64_t low, uint64_t high) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  PhiloxBlock c{{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                 static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c.v[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * c.v[2];
    c = PhiloxBlock{{static_cast<uint32_t>(b >> 32) ^ c.v[1] ^ k0, static_cast<uint32_t>(b),
                     static_cast<uint32_t>(a >> 32) ^ c.v[3] ^ k1, static_cast<uint32_t>(a)}};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// What a draw is used for, below 16; distinct purposes are independent.
enum class Stream : uint32_t {
  token = 0,
  order = 1,
  probe = 2,
  remask = 3,
  proposal = 4,
  path = 5
};

// Uniform in (0, 1): never an endpoint, so that logarithms and inverse CDFs are finite. All 64 bits
// of seed and sequence tell draws apart, and the lower 32 of a step. The counter has 128 bits: the
// upper half of the sequence's number stands above the stream, its last four bits above the
// position, which is below 2^28.
TABES_HOST_DEVICE inline double counter_uniform(uint64_t seed, Stream stream, int64_t sequence,
                                                int64_t position, int64_t step) {
  const uint64_t id = static_cast<uint64_t>(sequence);
  const uint32_t place = static_cast<uint32_t>(position) ^ static_cast<uint32_t>(id >> 60) << 28;
  const uint32_t kind = static_cast<uint32_t>(stream) | static_cast<uint32_t>(id >> 32) << 4;
  const PhiloxBlock b =
      philox(seed, static_cast<uint64_t>(place) << 32 | static_cast<uint32_t>(step),
             static_cast<uint64_t>(kind) << 32 | static_cast<uint32_t>(id));
  const uint64_t bits = (static_cast<uint64_t>(b.v[0]) << 32 | b.v[1]) >> 12;  // 52 bits
  return (static_cast<double>(bits) + 0.5) * 0x1.0p-52;
}

}  // namespace tabes
