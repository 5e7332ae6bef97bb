use models::*; use schemas::*;
fn read(p:&str)->Vec<u8>{std::fs::read(p).unwrap()}
fn main(){
  let x:Vec<f32>=read("/tmp/hb/x.f32").chunks_exact(4).map(|b|f32::from_le_bytes(b.try_into().unwrap())).collect();
  let y=read("/tmp/hb/y.u8");
  let day:Vec<i32>=read("/tmp/hb/day.i32").chunks_exact(4).map(|b|i32::from_le_bytes(b.try_into().unwrap())).collect();
  let layout=FeatureLayout::new((0..15).map(|i|FeatureSpec{name:format!("c{i}"),definition:format!("{i}"),nullable:false}).collect());
  let part=|a:i32,b:i32|{let r:Vec<usize>=(0..y.len()).filter(|i|day[*i]>=a&&day[*i]<b).collect();
    Dataset{rows:r.iter().flat_map(|i|x[i*15..i*15+15].iter().copied()).collect(),width:15,labels:r.iter().map(|i|y[*i]==1).collect()}};
  let env=|k:&str,d:f64|std::env::var(k).ok().map_or(d,|v|v.parse().unwrap());
  // 2018-04-01 = day 0; 08-15 = 136
  for s in [136,129,122,115]{ for seed in 0..env("SEEDS",1.0) as u64 {
    let o=TrainOptions{seed,learning_rate:env("LR",2e-3),batch_size:env("BS",512.0) as usize,epochs:env("EPOCHS",40.0) as usize,..TrainOptions::default()};
    let t0=std::time::Instant::now();
    let a=train(&layout,&part(s-env("TD",0.0) as i32,s+7),&part(s+7,s+14),&o,&mut |e| if std::env::var("V").is_ok(){println!("{e:?}")}).unwrap();
    let t=t0.elapsed().as_secs_f64();
    let test=part(s+14,s+21); let mut sc=Vec::new(); Scorer::open(&a,Device::Cpu).unwrap().score(&test.rows,&mut sc).unwrap();
    let e=evaluate(&sc,&test.labels,a.threshold()).unwrap(); let m=a.metrics();
    let bytes:Vec<u8>=sc.iter().flat_map(|v|v.to_le_bytes()).collect();
    std::fs::write(format!("/tmp/hb/scores_{s}_{seed}.f32"),bytes).unwrap();
    println!("fold {s} seed {seed}: all-customers AP {:.4} AUC {:.4} val AP {:.4} best {}/{} ll {:.5}->{:.5} t {t:.1}s",e.average_precision,e.auc,m.validation.average_precision,m.best_epoch,m.epochs,m.log_loss_uncalibrated,m.log_loss);
  }}
}
