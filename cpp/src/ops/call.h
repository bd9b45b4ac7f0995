// Shared by the operator files: calling through the dispatcher, and visiting the CPU types.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "ops/cpu/kernels.h"

namespace tabes::ops {

// A typed handle of tabes::NAME, looked up once.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// The type the arithmetic of `stored` is done in.
inline at::ScalarType accumulate_type(at::ScalarType stored) {
  return stored == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace tabes::ops

// Runs the body with scalar_t = float, double or c10::BFloat16.
#define TABES_DISPATCH(type, name, ...)                                          \
  AT_DISPATCH_SWITCH(type, name,                                                 \
                     AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) AT_DISPATCH_CASE( \
                         at::kDouble, __VA_ARGS__) AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))
