/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accounts. They differ in what they leave out, by factors, and papers seldom say which one theirs is: so every report
 * shows all. A step's energy splits into the GPUs' and the cards'; links count with the cards.
 */
#include "sim/account.h"

struct energy {
    double gpu, pnm, fc;
};

static double gpu_power_time(const struct sim_values *v, const struct sim_step *s)
{
    return s->n_gpus * (v->gpu.busy_power * s->gpu_busy_s + v->gpu.idle_power * (s->seconds - s->gpu_busy_s));
}

static double pnm_activity(const struct sim_values *v, const struct sim_step *s)
{
    return 8 * s->pnm_bytes * v->pnm.memory_energy + s->pnm_flops * v->pnm.compute_energy +
           8 * s->link_bytes * v->link.energy;
}

static double card_seconds(const struct sim_step *s)
{
    return s->n_pnm * s->seconds;
}

/* Bits and FLOPs, and what flows while nothing happens. */
static struct energy activity(const struct sim_values *v, const struct sim_step *s)
{
    struct energy e = {.gpu = 8 * s->gpu_bytes * v->gpu.memory_energy + s->gpu_flops * v->gpu.compute_energy +
                              s->n_gpus * v->gpu.idle_power * s->seconds,
                       .pnm = pnm_activity(v, s),
                       .fc = 8 * s->gpu_fc_bytes * v->gpu.memory_energy + s->gpu_fc_flops * v->gpu.compute_energy +
                             s->n_gpus * v->gpu.idle_power * s->gpu_fc_s};

    if (!s->full_activity)
        e.pnm += v->pnm.background_power * card_seconds(s);
    else /* the power of a waiting card has the DRAM's background in it */
        e.pnm += s->plain_memory ? v->node.memory_power * card_seconds(s)
                                 : v->pnm.idle_power * card_seconds(s) + v->pnm.controller_power * s->pnm_busy_s;
    return e;
}

static struct energy power_time(const struct sim_values *v, const struct sim_step *s)
{
    double waiting = s->plain_memory ? v->node.memory_power : v->pnm.idle_power;
    double busy = s->plain_memory ? v->node.memory_power : v->pnm.card_power;

    return (struct energy){.gpu = gpu_power_time(v, s),
                           .pnm = busy * s->pnm_busy_s + waiting * (card_seconds(s) - s->pnm_busy_s),
                           .fc = s->n_gpus * v->gpu.busy_power * s->gpu_fc_s};
}

static struct energy paper(const struct sim_values *v, const struct sim_step *s)
{
    return (struct energy){
        .gpu = gpu_power_time(v, s), .pnm = pnm_activity(v, s), .fc = s->n_gpus * v->gpu.busy_power * s->gpu_fc_s};
}

static struct energy power_busy(const struct sim_values *v, const struct sim_step *s)
{
    return (struct energy){.gpu = s->n_gpus * v->gpu.busy_power * s->gpu_busy_s,
                           .pnm = s->plain_memory ? 0 : v->pnm.card_power * s->pnm_busy_s,
                           .fc = s->n_gpus * v->gpu.busy_power * s->gpu_fc_s};
}

void sim_account_energy(const struct sim_values *values, const struct sim_step *step, struct nkv_sim_report *report)
{
    const struct energy all[NKV_SIM_ACCOUNT_COUNT] = {[NKV_SIM_ACTIVITY] = activity(values, step),
                                                      [NKV_SIM_POWER_TIME] = power_time(values, step),
                                                      [NKV_SIM_PAPER] = paper(values, step),
                                                      [NKV_SIM_POWER_BUSY] = power_busy(values, step)};

    for (uint32_t i = 0; i < NKV_SIM_ACCOUNT_COUNT; i++) {
        report->energy_gpu_j[i] = all[i].gpu / step->batch;
        report->energy_pnm_j[i] = all[i].pnm / step->batch;
        report->energy_j[i] = (all[i].gpu + all[i].pnm) / step->batch;
        report->fc_j[i] = all[i].fc / step->batch;
        report->attention_j[i] = report->energy_j[i] - report->fc_j[i];
    }
}

/* $ per hour of hardware, paid off over the years it is in use. */
static double hardware(const struct sim_values *v, double price)
{
    return price / (v->cost.years * 8760 * v->cost.utilisation);
}

static double power(const struct sim_values *v, double watts)
{
    return watts / 1000 * v->cost.electricity;
}

static double devices_usd(const struct sim_values *v, const struct sim_step *s)
{
    double cards = s->plain_memory ? 0 : s->n_pnm;

    return s->n_gpus * (power(v, v->gpu.peak_power) + hardware(v, v->gpu.price)) +
           cards * (power(v, v->pnm.card_power) + hardware(v, v->pnm.price));
}

static double full_usd(const struct sim_values *v, const struct sim_step *s)
{
    double memory = s->plain_memory ? s->n_pnm : 0, cards = s->n_pnm - memory, switches = s->n_pnm ? s->n_nodes : 0;
    double watts = s->n_gpus * v->gpu.peak_power + cards * v->pnm.card_power + memory * v->node.memory_power +
                   s->n_hosts * v->node.host_power + switches * v->node.switch_power;
    double price = s->n_gpus * v->gpu.price + cards * v->pnm.price + memory * v->node.memory_price +
                   s->n_hosts * v->node.host_price + switches * v->node.switch_price;

    return power(v, watts * v->cost.pue) + hardware(v, price);
}

void sim_account_cost(const struct sim_values *values, const struct sim_step *step, struct nkv_sim_report *report)
{
    double tokens_per_hour = 3600 * step->batch / step->seconds;

    report->usd_per_hour = devices_usd(values, step);
    report->tokens_per_usd = tokens_per_hour / report->usd_per_hour;
    report->usd_per_mtoken = 1e6 / report->tokens_per_usd;
    report->full_usd_per_hour = full_usd(values, step);
    report->full_tokens_per_usd = tokens_per_hour / report->full_usd_per_hour;
    report->full_usd_per_mtoken = 1e6 / report->full_tokens_per_usd;
}
