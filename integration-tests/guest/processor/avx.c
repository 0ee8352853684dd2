/* The processor offers no AVX, so this program is killed by SIGILL. */

#include <stdio.h>

int main(void)
{
    float sum[4] __attribute__((aligned(16))) = {1, 2, 3, 4};

    __asm__ volatile("vmovaps %0, %%xmm1\n\tvaddps %%xmm1, %%xmm1, %%xmm0\n\tvmovaps %%xmm0, %0"
                     : "+m"(sum) : : "xmm0", "xmm1");
    printf("AVX computed %g\n", (double)sum[0]);
    return 0;
}
