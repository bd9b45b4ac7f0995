// What policies answer, checked: the only place where either loop trusts what it was given.
#pragma once

#include <vector>

#include "tabes/policy.h"

namespace tabes {

// The decision on `eligible` rows of `sequences` sequences in a batch of `rows` rows, its numbers
// as float64 on the CPU. Throws InputError, naming the policy, for a shape, type, device or row
// that cannot be. What the numbers are, and which rows may be masked again, is for the loop to say.
Decision checked(const Policy& policy, Decision given, int64_t eligible, int64_t sequences,
                 int64_t rows);

// The same of a decision on the device: [B, K] are `sizes`. Reads no number.
DeviceDecision checked(const Policy& policy, DeviceDecision given, at::IntArrayRef sizes,
                       at::Device device);

// How many of a sequence's `eligible` rows the policy reveals, which must be `least` or more.
void check_count(const Policy& policy, int64_t count, int64_t least, int64_t eligible);

}  // namespace tabes
