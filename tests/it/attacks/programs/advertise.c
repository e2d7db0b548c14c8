/* advertise INTERFACE COUNT: sends router advertisements to all nodes of the link, which offer a default route and the prefix
 * fd66:bad::/64 (RFC 4861, 4.2). Prints how many were sent. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    struct {
        struct nd_router_advert advert;
        struct nd_opt_prefix_info prefix;
    } packet;
    struct sockaddr_in6 all_nodes = { .sin6_family = AF_INET6 };
    int sent = 0, hops = 255;
    if (count < 3)
        return 2;
    int fd = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof hops)) {
        printf("socket: %s\n", strerror(errno));
        return 1;
    }
    memset(&packet, 0, sizeof packet);
    packet.advert.nd_ra_type = ND_ROUTER_ADVERT;
    packet.advert.nd_ra_curhoplimit = 64;
    packet.advert.nd_ra_router_lifetime = htons(1800);
    packet.prefix.nd_opt_pi_type = ND_OPT_PREFIX_INFORMATION;
    packet.prefix.nd_opt_pi_len = 4;
    packet.prefix.nd_opt_pi_prefix_len = 64;
    packet.prefix.nd_opt_pi_flags_reserved = ND_OPT_PI_FLAG_ONLINK | ND_OPT_PI_FLAG_AUTO;
    packet.prefix.nd_opt_pi_valid_time = htonl(3600);
    packet.prefix.nd_opt_pi_preferred_time = htonl(3600);
    inet_pton(AF_INET6, "fd66:bad::", &packet.prefix.nd_opt_pi_prefix);
    inet_pton(AF_INET6, "ff02::1", &all_nodes.sin6_addr);
    all_nodes.sin6_scope_id = if_nametoindex(arguments[1]);
    for (int i = 0; i < atoi(arguments[2]); i++) {
        if (sendto(fd, &packet, sizeof packet, 0, (struct sockaddr *)&all_nodes, sizeof all_nodes) > 0)
            sent++;
        usleep(20000);
    }
    printf("sent %d\n", sent);
    return 0;
}
