// A caller's autocast or gradient mode must not change what a frozen model computes.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace tabes {

class PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
};

// For code that is not ours, and for autograd: undoes a PlainDispatch around it and an inference
// mode of the caller, so that only `grad` decides whether a graph is recorded. Autocast stays off.
// Tensors made in the caller's inference mode cannot enter a graph; clone them in here.
class OpenDispatch {
 public:
  explicit OpenDispatch(bool grad) : keys_(opened()), grad_(grad) {}

 private:
  static c10::impl::LocalDispatchKeySet opened() {
    c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
    keys.excluded_ = (keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView) |
                     c10::autocast_dispatch_keyset;
    return keys;
  }

  c10::InferenceMode normal_{false};
  c10::impl::ForceDispatchKeyGuard keys_;
  c10::AutoGradMode grad_;
};

}  // namespace tabes
