// Everything a host program needs.
#pragma once

#include "tabes/checkpoint.h"
#include "tabes/denoiser.h"
#include "tabes/error.h"
#include "tabes/generate.h"
#include "tabes/policy.h"
#include "tabes/transformer.h"
