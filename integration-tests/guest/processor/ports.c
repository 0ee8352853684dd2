/* A program that has not asked for ports may use none: it is killed by SIGSEGV, and does not reset the machine. */

#include <stdio.h>

int main(void)
{
    unsigned char reset = 0xFE;

    __asm__ volatile("outb %0, $0x64" : : "a"(reset));
    puts("the port was written");
    return 0;
}
