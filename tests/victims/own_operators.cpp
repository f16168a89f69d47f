// C++'s operators in a library of their own, each with its throw in itself: that is in a part of the code that is seldom
// come to, before what no call frame information describes.
#include "victim.h"

#define DIRECT
#include "own_operators.h"
