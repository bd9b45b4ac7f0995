// Everything a host program needs.
#pragma once

#include "tabes/boe.h"
#include "tabes/checkpoint.h"
#include "tabes/denoiser.h"
#include "tabes/error.h"
#include "tabes/export.h"
#include "tabes/generate.h"
#include "tabes/influence.h"
#include "tabes/module_denoiser.h"
#include "tabes/policy.h"
#include "tabes/transformer.h"
#include "tabes/version.h"
