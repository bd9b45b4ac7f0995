// PyTorch's errors as ours: failed allocations say what to do, the rest what was wrong.
#pragma once

#include <c10/util/Exception.h>

#include <new>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "available_memory.h"
#include "tabes/error.h"

namespace tabes {

// ATen reports a failed CPU allocation, and CUDA libraries any, as a plain Error, told apart only
// by its text.
inline bool is_out_of_memory(const c10::Error& error) {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error)) return true;
  const std::string_view said = error.what_without_backtrace();
  const auto has = [&](std::string_view part) { return said.find(part) != std::string_view::npos; };
  return has("allocate memory") || has("out of memory") || has("STATUS_ALLOC_FAILED") ||
         has("Storage size calculation overflowed");
}

// What `work` returns; if memory runs out meanwhile, or would, DeviceError with the text of `say`.
// No c10::Error comes out of it.
template <typename Work, typename Say>
auto within_memory(Work&& work, Say&& say) {
  try {
    return std::forward<Work>(work)();
  } catch (const c10::Error& error) {
    if (!is_out_of_memory(error)) throw Error(error.what_without_backtrace());
    throw DeviceError(say());
  } catch (const NotEnoughMemory& error) {
    throw DeviceError(say() + " (" + size_text(error.needed) + " are needed, " +
                      size_text(error.available) + " are free)");
  } catch (const std::bad_alloc&) {
    throw DeviceError(say());
  } catch (const std::length_error&) {  // of a vector that could not be that long
    throw DeviceError(say());
  }
}

}  // namespace tabes
