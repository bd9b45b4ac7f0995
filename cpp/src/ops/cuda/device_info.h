// What host code asks of the CUDA runtime, without its headers.
#pragma once

namespace tabes::gpu {

// Of the current device; 0 if that cannot be told.
int multiprocessors();

const char* error_text(int status);

}  // namespace tabes::gpu
